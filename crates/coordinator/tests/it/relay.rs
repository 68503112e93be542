//! A way to a server that can be made bad.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;

/// How the way is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    Good,
    /// Nothing arrives in either direction, and nobody is told.
    Silent,
    /// The next answer is lost together with its connection; then the way is good.
    LosesAnAnswer,
    /// Transactions are heard, and all answers to them are lost with their connections.
    LosesTransactions,
}

/// What a request for a transaction has in its first line.
const TRANSACTION: &[u8] = b"/v3/kv/txn ";

pub struct Relay {
    port: u16,
    way: Arc<Mutex<Way>>,
}

impl Relay {
    /// A way to a port of this machine.
    pub fn to(target: u16) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        let way = Arc::new(Mutex::new(Way::Good));
        let of_thread = Arc::clone(&way);
        // Ends with the process. Its connections end with those who made them.
        thread::spawn(move || {
            for client in listener.incoming().map_while(Result::ok) {
                let Ok(server) = TcpStream::connect((Ipv4Addr::LOCALHOST, target)) else {
                    continue;
                };
                let pairs = [
                    (client.try_clone().unwrap(), server.try_clone().unwrap(), false),
                    (server, client, true),
                ];
                let asks = Arc::new(AtomicBool::new(false));
                for (from, to, is_answers) in pairs {
                    let (way, asks) = (Arc::clone(&of_thread), Arc::clone(&asks));
                    thread::spawn(move || pass((from, to), &way, is_answers, &asks));
                }
            }
        });
        Self { port, way }
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    pub fn set(&self, way: Way) {
        *self.way.lock().unwrap() = way;
    }

    pub fn way(&self) -> Way {
        *self.way.lock().unwrap()
    }
}

/// Passes on what one side says. `asks` is whether a transaction was asked for last.
fn pass(
    (mut from, mut to): (TcpStream, TcpStream),
    way: &Mutex<Way>,
    is_answers: bool,
    asks: &AtomicBool,
) {
    let mut bytes = [0; 65536];
    while let Ok(length @ 1..) = from.read(&mut bytes) {
        if !is_answers && bytes[..length].starts_with(b"POST ") {
            let head = &bytes[..length.min(80)];
            let is_one = head.windows(TRANSACTION.len()).any(|part| part == TRANSACTION);
            asks.store(is_one, Ordering::Release);
        }
        let mut way = way.lock().unwrap();
        match *way {
            Way::Silent => continue,
            Way::LosesAnAnswer if is_answers => {
                *way = Way::Good;
                break;
            }
            Way::LosesTransactions if is_answers && asks.load(Ordering::Acquire) => break,
            Way::Good | Way::LosesAnAnswer | Way::LosesTransactions => {}
        }
        drop(way);
        if to.write_all(&bytes[..length]).is_err() {
            break;
        }
    }
    let _ = from.shutdown(Shutdown::Both);
    let _ = to.shutdown(Shutdown::Both);
}
