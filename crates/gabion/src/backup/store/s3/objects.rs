//! Requests to a bucket. The library is asynchronous: one thread drives all that it does, and those
//! who ask wait for it, or for several answers at once.

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::Instant;

use crossbeam_channel::{Receiver, bounded};
use object_store::aws::AmazonS3;
use object_store::client::HttpError;
use object_store::path::Path;
use object_store::{
    Error, ListResult, ObjectMeta, ObjectStore, ObjectStoreExt, PutMode, PutPayload, Result as Done,
};
use tokio::runtime::{Builder, Handle};
use tokio::sync::Notify;

use super::SCHEME;
use super::refusals::{self, refused};
use super::settings::{self, PATIENCE, PAUSE, PAUSE_MAX};
use crate::failure::{Failure, Result};

/// Objects that one request removes.
const REMOVED_AT_ONCE: usize = 16;

/// Objects below a prefix of a bucket, with keys from there.
pub struct Objects {
    store: Arc<AmazonS3>,
    bucket: String,
    prefix: String,
    endpoint: String,
    /// How often a request is sent at most.
    attempts: usize,
    /// Drives requests.
    driver: Driver,
}

/// The thread that drives requests, until this is dropped.
struct Driver {
    handle: Handle,
    end: Arc<Notify>,
    thread: Option<JoinHandle<()>>,
}

/// A part that is being sent, and what becomes of it.
pub struct Pending(Receiver<Done<()>>);

impl Objects {
    /// The objects of a bucket below `prefix`, which has no slash at either end.
    pub fn open(bucket: &str, prefix: &str) -> Result<Self> {
        let attempts = settings::attempts()?;
        let (store, endpoint) = settings::open(bucket, attempts)?;
        let (store, driver) = (Arc::new(store), Driver::start()?);
        let (bucket, prefix) = (bucket.to_owned(), prefix.to_owned());
        Ok(Self { store, bucket, prefix, endpoint, attempts, driver })
    }

    /// What people call an object, or all of them.
    pub fn path(&self, key: &str) -> String {
        let parts = [&*self.bucket, &*self.prefix, key];
        let parts: Vec<_> = parts.into_iter().filter(|part| !part.is_empty()).collect();
        format!("{SCHEME}{}", parts.join("/"))
    }

    /// What tells them from those of another store.
    pub fn identity(&self) -> String {
        format!("{} {}", self.path(""), self.endpoint.trim_end_matches('/'))
    }

    fn key(&self, key: &str) -> Result<Path> {
        let whole = format!("{}/{key}", self.prefix);
        let parsed = Path::parse(whole.trim_matches('/'));
        parsed.map_err(|error| Failure::of(format!("{} is no name", self.path(key)), &error))
    }

    /// Waits for a request.
    fn wait<T, F>(&self, request: F) -> T
    where
        T: Send + 'static,
        F: Future<Output = T> + Send + 'static,
    {
        self.driver.begin(request).recv().expect("the driver lives as long as this")
    }

    /// The names of what has something below it, as folders have.
    pub fn folders(&self) -> Result<Vec<String>> {
        let (store, prefix) = (Arc::clone(&self.store), self.key("")?);
        let listed = self.wait(async move { store.list_with_delimiter(Some(&prefix)).await });
        let failed = |error| refused(&self.bucket, format!("cannot list {}", self.path("")), error);
        let ListResult { common_prefixes, .. } = listed.map_err(failed)?;
        let name = |path: Path| path.filename().map(str::to_owned);
        Ok(common_prefixes.into_iter().filter_map(name).collect())
    }

    /// The objects below `folder`, by their names there, and how long they are.
    pub fn list(&self, folder: &str) -> Result<BTreeMap<String, u64>> {
        let (store, prefix) = (Arc::clone(&self.store), self.key(folder)?);
        let listed = self.wait(async move { store.list_with_delimiter(Some(&prefix)).await });
        let what = || format!("cannot list {}", self.path(folder));
        let listed = listed.map_err(|error| refused(&self.bucket, what(), error))?;
        let objects = listed.objects.into_iter();
        let named = |object: ObjectMeta| {
            object.location.filename().map(|name| (name.to_owned(), object.size))
        };
        Ok(objects.filter_map(named).collect())
    }

    /// A whole object of at most `most` bytes; nothing if there is none.
    pub fn read(&self, key: &str, most: u64) -> Result<Option<Vec<u8>>> {
        let (store, path) = (Arc::clone(&self.store), self.key(key)?);
        let got = self.wait(async move {
            let found = store.get(&path).await?;
            match found.meta.size <= most {
                true => found.bytes().await.map(Some),
                false => Ok(None),
            }
        });
        let failed =
            |error| refused(&self.bucket, format!("cannot read {}", self.path(key)), error);
        match got {
            Err(error) if refusals::is_no_object(&error) => Ok(None),
            got => match got.map_err(failed)? {
                Some(bytes) => Ok(Some(bytes.to_vec())),
                None => Err(Failure::new(format!("{} is too long", self.path(key)))),
            },
        }
    }

    /// Fills `into` with the bytes at `offset` of an object that must have `length` bytes.
    pub fn read_at(&self, key: &str, offset: u64, into: &mut [u8], length: u64) -> Result<()> {
        let (store, path) = (Arc::clone(&self.store), self.key(key)?);
        let range = offset..offset + into.len() as u64;
        let at = path.clone();
        let got = self.wait(async move { store.get_range(&at, range).await });
        if let Ok(bytes) = &got
            && bytes.len() == into.len()
        {
            into.copy_from_slice(bytes);
            return Ok(());
        }
        // Of an object that is shorter a store gives what there is, or refuses.
        let store = Arc::clone(&self.store);
        if let Ok(meta) = self.wait(async move { store.head(&path).await })
            && meta.size != length
        {
            return Err(Failure::new(format!(
                "{} has {} bytes and should have {length}: it is not what was stored",
                self.path(key),
                meta.size
            )));
        }
        let what = format!("cannot read {}", self.path(key));
        Err(match got {
            Err(error) => refused(&self.bucket, what, error),
            Ok(_) => Failure::new(format!("{what}: fewer bytes came than there are")),
        })
    }

    /// Begins to write an object where none is.
    pub fn send(&self, key: &str, bytes: Vec<u8>) -> Result<Pending> {
        let (store, path) = (Arc::clone(&self.store), self.key(key)?);
        let (payload, attempts) = (PutPayload::from(bytes), self.attempts);
        Ok(Pending(self.driver.begin(create(store, path, payload, attempts))))
    }

    /// Waits for what was begun.
    pub fn sent(&self, key: &str, pending: &Pending) -> Result<()> {
        let done = pending.0.recv().expect("the driver lives as long as this");
        done.map_err(|error| {
            refused(&self.bucket, format!("cannot store {}", self.path(key)), error)
        })
    }

    /// Removes objects.
    pub fn remove(&self, keys: Vec<String>) -> Result<()> {
        for some in keys.chunks(REMOVED_AT_ONCE) {
            let begun = some.iter().map(|key| {
                let (store, path) = (Arc::clone(&self.store), self.key(key)?);
                Ok((key, self.driver.begin(async move { store.delete(&path).await })))
            });
            for (key, pending) in begun.collect::<Result<Vec<_>>>()? {
                let removed = pending.recv().expect("the driver lives as long as this");
                let what = || format!("cannot remove {}", self.path(key));
                removed.map_err(|error| refused(&self.bucket, what(), error))?;
            }
        }
        Ok(())
    }
}

/// Writes an object where none is. The library sends again what was answered that it could not be
/// done, and not what was not answered: it cannot tell whether it was done. We can.
async fn create(
    store: Arc<AmazonS3>,
    path: Path,
    payload: PutPayload,
    attempts: usize,
) -> Done<()> {
    let begun = Instant::now();
    let (mut attempt, mut pause) = (0, PAUSE);
    loop {
        attempt += 1;
        let put = store.put_opts(&path, payload.clone(), PutMode::Create.into()).await;
        let error = match put {
            // Whoever says so knows that the store does not have it.
            Err(Error::NotImplemented { .. }) => {
                return store.put_opts(&path, payload, PutMode::Overwrite.into()).await.map(drop);
            }
            Err(error @ Error::AlreadyExists { .. }) => error,
            Err(error) if is_unanswered(&error) => {
                if attempt >= attempts || begun.elapsed() > PATIENCE {
                    return Err(error);
                }
                tokio::time::sleep(pause).await;
                pause = (2 * pause).min(PAUSE_MAX);
                error
            }
            put => return put.map(drop),
        };
        // It may be there because of this or an earlier attempt, or because of somebody else.
        match store.get(&path).await {
            Ok(found) => {
                let found = found.bytes().await?;
                if found.iter().eq(payload.iter().flatten()) {
                    return Ok(());
                }
                let source = Box::new(error);
                return Err(Error::AlreadyExists { path: path.to_string(), source });
            }
            Err(_) if is_unanswered(&error) => {}
            Err(_) => return Err(error),
        }
    }
}

/// Whether nobody knows if it was done.
fn is_unanswered(error: &Error) -> bool {
    let mut cause: Option<&dyn std::error::Error> = Some(error);
    while let Some(error) = cause {
        if error.is::<HttpError>() {
            return true;
        }
        cause = error.source();
    }
    false
}

impl Driver {
    fn start() -> Result<Self> {
        let failed = |error| Failure::of("cannot start to talk to the object store", &error);
        let runtime = Builder::new_current_thread().enable_all().build().map_err(failed)?;
        let (handle, end) = (runtime.handle().clone(), Arc::new(Notify::new()));
        let ending = Arc::clone(&end);
        let thread = thread::Builder::new().name("objects".to_owned());
        let thread = thread.spawn(move || runtime.block_on(ending.notified())).map_err(failed)?;
        Ok(Self { handle, end, thread: Some(thread) })
    }

    fn begin<T, F>(&self, request: F) -> Receiver<T>
    where
        T: Send + 'static,
        F: Future<Output = T> + Send + 'static,
    {
        let (sender, receiver) = bounded(1);
        self.handle.spawn(async move {
            // Whoever asked may have given up.
            let _ = sender.send(request.await);
        });
        receiver
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        self.end.notify_one();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
