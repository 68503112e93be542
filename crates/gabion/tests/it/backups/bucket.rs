//! An object store for a test: the server of the crate `s3s-fs`, whose objects are files, with the
//! troubles that the world has.

use std::fs;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use s3s::auth::SimpleAuth;
use s3s::service::{S3Service, S3ServiceBuilder};
use tokio::net::TcpListener;
use tokio::runtime::Builder;

use crate::world::{Folder, GABION, Outcome};

const KEY: &str = "AKIDSHELF";
const SECRET: &str = "not told to anybody";
/// The bucket that there is.
pub const BUCKET: &str = "shelf";

/// What goes wrong.
#[derive(Default)]
pub struct Troubles {
    /// So many requests are answered that they come too fast.
    pub busy: AtomicU32,
    /// The clocks are far from each other.
    pub is_skewed: AtomicBool,
    /// Nobody can reach it any more.
    pub is_gone: AtomicBool,
    /// Somebody else writes the part with this number a moment before; none if it is 0.
    pub rival: AtomicU32,
    /// The part with this number does not get through; none if it is 0.
    pub held: AtomicU32,
    /// How often it was asked for the names at a place, which is no trouble yet.
    pub listings: AtomicU32,
}

/// A store that ends with this.
pub struct Store {
    address: SocketAddr,
    root: PathBuf,
    pub troubles: Arc<Troubles>,
    end: Option<tokio::sync::oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Store {
    /// Starts one, with a bucket.
    pub fn start(folder: &Folder) -> Self {
        let root = folder.join("objects");
        fs::create_dir_all(root.join(BUCKET)).unwrap();
        let files = s3s_fs::FileSystem::new(&root).unwrap();
        let mut service = S3ServiceBuilder::new(files);
        service.set_auth(SimpleAuth::from_single(KEY, SECRET));
        let service = service.build();
        let socket = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        socket.set_nonblocking(true).unwrap();
        let address = socket.local_addr().unwrap();
        let troubles = Arc::new(Troubles::default());
        let (end, ended) = tokio::sync::oneshot::channel();
        let (told, objects) = (Arc::clone(&troubles), root.clone());
        let thread = thread::spawn(move || {
            let runtime = Builder::new_current_thread().enable_all().build().unwrap();
            let serving = async move {
                let listener = TcpListener::from_std(socket).unwrap();
                tokio::select! {
                    () = serve(listener, objects, service, told) => {}
                    _ = ended => {}
                }
            };
            runtime.block_on(serving);
        });
        Self { address, root, troubles, end: Some(end), thread: Some(thread) }
    }

    /// Where a key of the bucket is.
    pub fn file(&self, key: &str) -> PathBuf {
        self.root.join(BUCKET).join(key)
    }

    /// The program, as whoever has the keys.
    pub fn command(&self, folder: &Folder, arguments: &[&str]) -> Command {
        let mut command = Command::new(GABION);
        command.args(arguments).current_dir(folder.path());
        command.env("GABION_STATE", folder.join("state"));
        command.env("AWS_ENDPOINT_URL", format!("http://{}", self.address));
        command.env("AWS_ACCESS_KEY_ID", KEY).env("AWS_SECRET_ACCESS_KEY", SECRET);
        command.env("AWS_REGION", "us-east-1").env("NO_PROXY", "127.0.0.1");
        command
    }

    /// The same, to its end.
    #[track_caller]
    pub fn gabion(&self, folder: &Folder, arguments: &[&str]) -> Outcome {
        folder.run(&mut self.command(folder, arguments))
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        drop(self.end.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

async fn serve(listener: TcpListener, root: PathBuf, service: S3Service, troubles: Arc<Troubles>) {
    while let Ok((socket, _)) = listener.accept().await {
        if troubles.is_gone.load(Ordering::Relaxed) {
            continue;
        }
        let (service, troubles) = (service.clone(), Arc::clone(&troubles));
        let root = root.clone();
        let answer = service_fn(move |request: Request<Incoming>| {
            let (service, troubles) = (service.clone(), Arc::clone(&troubles));
            let root = root.clone();
            async move {
                if troubles.is_gone.load(Ordering::Relaxed) {
                    return Err(io::Error::other("gone"));
                }
                let less = |left: u32| left.checked_sub(1);
                let busy = &troubles.busy;
                if busy.fetch_update(Ordering::Relaxed, Ordering::Relaxed, less).is_ok() {
                    return Ok(refusal(503, "SlowDown"));
                }
                if troubles.is_skewed.load(Ordering::Relaxed) {
                    return Ok(refusal(403, "RequestTimeTooSkewed"));
                }
                let query = request.uri().query().unwrap_or_default();
                if query.contains("list-type") && !query.contains(".gabion") {
                    troubles.listings.fetch_add(1, Ordering::Relaxed);
                }
                let is_put = request.method() == "PUT";
                let is_part = |number: &AtomicU32| {
                    let number = number.load(Ordering::Relaxed);
                    let end = format!("/{number:08}");
                    is_put && number > 0 && request.uri().path().ends_with(&end)
                };
                while is_part(&troubles.held) {
                    if troubles.is_gone.load(Ordering::Relaxed) {
                        return Err(io::Error::other("gone"));
                    }
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
                if is_part(&troubles.rival) {
                    let path = request.uri().path().trim_start_matches('/');
                    fs::write(root.join(path), "somebody else's").unwrap();
                }
                let request = request.map(s3s::Body::from);
                service.call(request).await.map_err(|error| io::Error::other(format!("{error:?}")))
            }
        });
        tokio::spawn(async move {
            // Clients leave as they like.
            let _ = http1::Builder::new().serve_connection(TokioIo::new(socket), answer).await;
        });
    }
}

fn refusal(status: u16, code: &str) -> Response<s3s::Body> {
    let body = format!("<?xml version=\"1.0\"?><Error><Code>{code}</Code></Error>");
    Response::builder().status(status).body(s3s::Body::from(body)).unwrap()
}

/// The names in a folder, sorted; none if it is not there.
pub fn names(folder: &Path) -> Vec<String> {
    if folder.is_dir() { crate::world::names(folder) } else { Vec::new() }
}
