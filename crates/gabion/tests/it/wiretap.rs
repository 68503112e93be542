//! Somebody between a client and a server: sees all that they say, and cuts the connection.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;

/// Listens, and hands everything on.
pub struct Wiretap {
    pub address: SocketAddr,
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    seen: Mutex<Vec<u8>>,
    sockets: Mutex<Vec<TcpStream>>,
    is_closed: AtomicBool,
}

impl Wiretap {
    /// Between whoever connects to an address of `host`, and the server at `to`.
    pub fn new(host: &str, to: &str) -> Self {
        let listener = TcpListener::bind((host, 0)).unwrap();
        let address = listener.local_addr().unwrap();
        let shared = Arc::new(Shared::default());
        let (of_thread, to) = (Arc::clone(&shared), to.to_owned());
        // It ends with the test's process, as do those that it starts.
        thread::spawn(move || {
            for client in listener.incoming() {
                let (Ok(client), Ok(server)) = (client, TcpStream::connect(&*to)) else { continue };
                let mut sockets = of_thread.sockets.lock().unwrap();
                if of_thread.is_closed.load(Ordering::Acquire) {
                    continue;
                }
                for (from, to) in [(&client, &server), (&server, &client)] {
                    let (from, to) = (from.try_clone().unwrap(), to.try_clone().unwrap());
                    let shared = Arc::clone(&of_thread);
                    thread::spawn(move || shared.hand_on(from, to));
                }
                sockets.extend([client, server]);
            }
        });
        Self { address, shared }
    }

    /// Cuts all connections; gives how many there were.
    pub fn cut(&self) -> usize {
        let sockets = std::mem::take(&mut *self.shared.sockets.lock().unwrap());
        let open = |socket: &&TcpStream| socket.shutdown(Shutdown::Both).is_ok();
        sockets.iter().filter(open).count() / 2
    }

    /// Cuts all connections, those too that are made from now on.
    pub fn close(&self) {
        self.shared.is_closed.store(true, Ordering::Release);
        self.cut();
    }

    /// Whether these bytes went by.
    pub fn has_seen(&self, bytes: &[u8]) -> bool {
        self.shared.seen.lock().unwrap().windows(bytes.len()).any(|part| part == bytes)
    }

    /// As if nothing had gone by.
    pub fn forget(&self) {
        self.shared.seen.lock().unwrap().clear();
    }

    /// How many bytes went by.
    pub fn amount(&self) -> usize {
        self.shared.seen.lock().unwrap().len()
    }
}

impl Shared {
    fn hand_on(&self, mut from: TcpStream, mut to: TcpStream) {
        let mut buffer = vec![0; 64 << 10];
        while let Ok(count @ 1..) = from.read(&mut buffer) {
            self.seen.lock().unwrap().extend_from_slice(&buffer[..count]);
            if to.write_all(&buffer[..count]).is_err() {
                break;
            }
        }
        let _ = to.shutdown(Shutdown::Write);
    }
}
