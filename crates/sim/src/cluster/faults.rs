//! The director: who comes, what fails, and when everything has to be well.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use gabion_base::disk::Durability;
use gabion_base::rng::Rng;

use super::baton::MachineId;
use super::client::{Client, Traits};
use super::programs::{Habits, Program};
use super::server::Server;
use super::{DEADLINE, MARGIN, PATIENCE, Sabotage, World};
use crate::crash::survivors;
use crate::disk::{Event, SimDisk};
use crate::image::Image;

/// How long all calls may take when everything is well.
const HEALING_MAX: Duration = Duration::from_secs(60);
/// How often it is looked whether everybody is through.
const GLANCE: Duration = Duration::from_millis(50);

/// Programs that are not through.
type Running = Arc<AtomicUsize>;

/// A client's place in the world.
struct Post {
    traits: Traits,
    machine: MachineId,
    /// Since it has connected.
    client: Arc<std::sync::Mutex<Option<Arc<Client>>>>,
    running: Running,
}

/// Decides what happens.
pub struct Director {
    world: Arc<World>,
    rng: Rng,
    machines: MachineId,
    posts: Vec<Post>,
    disk: Option<Arc<SimDisk>>,
    server: MachineId,
    starts: u64,
    habits: Habits,
}

/// What fails.
#[derive(Clone, Copy, Debug)]
enum Fault {
    BreakConnections(usize),
    CutOff(usize, Duration),
    Sleep(usize, Duration),
    CrashClient(usize),
    CrashServer(Duration),
}

impl Director {
    /// One of `world`.
    pub fn new(world: &Arc<World>, rng: Rng) -> Self {
        Self {
            world: Arc::clone(world),
            rng,
            machines: 0,
            posts: Vec::new(),
            disk: None,
            server: 0,
            starts: 0,
            habits: Habits { calls: 0, rest: 1 },
        }
    }

    fn new_machine(&mut self) -> MachineId {
        self.machines += 1;
        self.machines
    }

    /// From the beginning to the end.
    pub fn direct(&mut self, image: &Image) {
        self.start_server(SimDisk::from_image(image.clone()));
        let clients = 3 + self.rng.below(3) + self.rng.below(2) * self.rng.below(4);
        let rest = [60, 400, 1500][self.rng.below(3) as usize];
        self.habits = Habits { calls: 4 + self.rng.below(24), rest };
        for number in 0..clients as usize {
            let traits = Traits {
                pace: 900 + self.rng.below(200) as u32,
                can_forget_names: self.rng.chance(3, 4),
                objects_max: [3, 1000][self.rng.below(2) as usize],
                forgets_slowly: self.world.has_slow_kernels,
            };
            let (client, running) = Default::default();
            self.posts.push(Post { traits, machine: 0, client, running });
            self.start_client(number);
        }
        let faults = match self.rng.below(4) {
            0 => 0,
            _ => self.rng.below(7),
        };
        for _ in 0..faults {
            let rest = self.rng.below(2500);
            self.world.baton.sleep(Duration::from_millis(rest));
            let fault = self.choose();
            self.world.baton.note(|| format!("{fault:?}"));
            self.happen(fault);
        }
        self.world.is_healed.store(true, Ordering::Relaxed);
        self.await_programs("after all was healed, programs do not come to their end");
        self.finish();
    }

    fn choose(&mut self) -> Fault {
        let client = self.rng.below(self.posts.len() as u64) as usize;
        let millis = Duration::from_millis;
        let short = millis(self.rng.below(1500));
        let long = millis(self.rng.below(3 * (PATIENCE + MARGIN).as_millis() as u64));
        match self.rng.below(12) {
            0..3 => Fault::BreakConnections(client),
            3..5 => Fault::CutOff(client, short),
            5..7 => Fault::CutOff(client, long),
            7 => Fault::Sleep(client, long),
            8 => Fault::CrashClient(client),
            _ => Fault::CrashServer(millis(self.rng.below(3000))),
        }
    }

    fn happen(&mut self, fault: Fault) {
        let (baton, network) = (Arc::clone(&self.world.baton), Arc::clone(&self.world.network));
        match fault {
            Fault::BreakConnections(client) => network.close_client(client),
            Fault::CutOff(client, time) => {
                network.cut_off(client);
                let world = Arc::clone(&self.world);
                baton.spawn(0, "healer", move || {
                    world.baton.sleep(time);
                    world.network.heal(client);
                });
            }
            Fault::Sleep(number, time) => {
                let machine = self.posts[number].machine;
                if let Some(client) = self.client(number) {
                    client.becomes_drowsy();
                }
                baton.stop(machine);
                let world = Arc::clone(&self.world);
                baton.spawn(0, "waker", move || {
                    world.baton.sleep(time);
                    world.baton.resume(machine);
                });
            }
            Fault::CrashClient(number) => {
                baton.crash(self.posts[number].machine);
                // Or the server finds out by the silence alone.
                if self.rng.chance(1, 2) {
                    network.close_client(number);
                }
                self.start_client(number);
            }
            Fault::CrashServer(time) => self.crash_server(time),
        }
    }

    fn client(&self, number: usize) -> Option<Arc<Client>> {
        self.posts[number].client.lock().expect("nobody panics here").clone()
    }

    fn start_server(&mut self, disk: SimDisk) {
        self.starts += 1;
        self.server = self.new_machine();
        let started = Arc::new(AtomicUsize::new(0));
        let (world, own) = (Arc::clone(&self.world), Arc::clone(&started));
        let (machine, start) = (self.server, self.starts);
        let disk = Arc::new(disk);
        self.disk = Some(Arc::clone(&disk));
        self.world.baton.spawn(machine, "server", move || {
            match Server::start(&world, machine, disk, start) {
                Ok(_) => world.network.listen(true),
                Err(error) => world.baton.fail(&error),
            }
            own.store(1, Ordering::Relaxed);
        });
        while started.load(Ordering::Relaxed) == 0 {
            self.world.baton.sleep(GLANCE);
        }
    }

    /// The server's machine crashes, and starts again after a time.
    fn crash_server(&mut self, time: Duration) {
        if self.rng.chance(1, 2) {
            // Somebody does not learn of it for long.
            let client = self.rng.below(self.posts.len() as u64) as usize;
            let time = time + Duration::from_millis(self.rng.below(4000));
            self.happen(Fault::CutOff(client, time));
        }
        self.world.network.listen(false);
        self.world.baton.crash(self.server);
        let disk = self.disk.take().expect("it has one");
        let mut recording = disk.recording();
        if self.world.sabotage == Sabotage::IgnoredFlushes {
            recording.events.iter_mut().for_each(ignore_flush);
        }
        let image = survivors(recording, &mut self.rng);
        let life = self.starts + 1;
        self.world.history.crash(life);
        self.world.baton.sleep(time);
        self.start_server(SimDisk::from_image(image));
    }

    fn start_client(&mut self, number: usize) {
        let machine = self.new_machine();
        let programs = 1 + self.rng.below(3);
        let seeds: BTreeMap<u64, u64> =
            (0..programs).map(|program| (program, self.rng.next_u64())).collect();
        let post = &mut self.posts[number];
        post.machine = machine;
        let (client, running) = Default::default();
        (post.client, post.running) = (client, running);
        post.running.store(programs as usize, Ordering::Relaxed);
        let (place, running) = (Arc::clone(&post.client), Arc::clone(&post.running));
        let (world, traits, habits) = (Arc::clone(&self.world), post.traits, self.habits);
        self.world.baton.spawn(machine, "mount", move || {
            let client = Client::start(&world, number, machine, traits);
            *place.lock().expect("nobody panics here") = Some(Arc::clone(&client));
            for (number, seed) in seeds {
                let mut program = Program::new(&world, &client, seed, number == 0);
                let running = Arc::clone(&running);
                client.spawn("program", move || {
                    program.run(habits);
                    running.fetch_sub(1, Ordering::Relaxed);
                });
            }
        });
    }

    fn await_programs(&self, complaint: &str) {
        let baton = &self.world.baton;
        let rest = Duration::from_millis(self.habits.rest);
        let until = baton.now() + HEALING_MAX + (rest + DEADLINE) * self.habits.calls as u32;
        while self.posts.iter().any(|post| post.running.load(Ordering::Relaxed) > 0) {
            if baton.now() > until {
                let standing = baton.standing();
                return baton.fail(&format!("{complaint}:\n{standing}"));
            }
            baton.sleep(GLANCE);
        }
    }

    /// Everybody looks at everything.
    fn finish(&mut self) {
        // What is healed just now shows within a session's time.
        self.world.baton.sleep(2 * (PATIENCE + MARGIN));
        if self.world.can_be_full() {
            self.everybody("makes room", Program::empty);
        }
        self.everybody("looks at everything", Program::finish);
        if self.world.can_be_full() {
            self.everybody("takes a share", Program::take_share);
        }
    }

    /// Runs a program on each client, of which it is told the number.
    fn everybody(&mut self, doing: &'static str, run: fn(&mut Program, u64)) {
        let clients = self.posts.len() as u64;
        for number in 0..self.posts.len() {
            let Some(client) = self.client(number) else {
                return self.world.baton.fail(&format!("client {number} cannot connect"));
            };
            let running = Arc::clone(&self.posts[number].running);
            running.store(1, Ordering::Relaxed);
            let mut program = Program::new(&self.world, &client, self.rng.next_u64(), true);
            let world = Arc::clone(&self.world);
            world.baton.note(|| format!("client {number} {doing}"));
            client.spawn("last look", move || {
                run(&mut program, clients);
                running.fetch_sub(1, Ordering::Relaxed);
            });
        }
        self.await_programs("after all was healed, the last look does not come to its end");
    }
}

/// What a disk's log would be if it did nothing to keep what it has.
fn ignore_flush(event: &mut Event) {
    match event {
        Event::Write { durability, .. } => *durability = Durability::Cached,
        Event::Flushed { begun } => *begun = 0,
        _ => {}
    }
}
