//! What programs were told is done, and is not at the server: whoever keeps that is told.

use std::sync::Arc;
use std::time::Duration;

use gabion_fs::{Error, WriteAt};
use gabion_link::message::{Call, ChangeNumber, ToClient};
use gabion_map::FileId;
use gabion_node::remote::Loss;

use crate::shared::{Client, Server};

/// Where losses of the client come out.
fn losses(client: &Client) -> crossbeam_channel::Receiver<Loss> {
    let (sender, receiver) = crossbeam_channel::unbounded();
    client.fs.set_loss_keeper(Some(Box::new(move |loss| drop(sender.send(loss)))));
    receiver
}

fn next(losses: &crossbeam_channel::Receiver<Loss>) -> Loss {
    losses.recv_timeout(Duration::from_secs(20)).expect("a loss is told")
}

fn calls(loss: &Loss) -> Vec<String> {
    let call = |call: &Call| match call {
        Call::Write { at: WriteAt::Offset(at), bytes, .. } => {
            format!("{} at {at}", String::from_utf8_lossy(bytes))
        }
        Call::Create { name, .. } => format!("create {}", String::from_utf8_lossy(name)),
        other => format!("{other:?}"),
    };
    loss.changes.iter().map(|change| call(&change.call)).collect()
}

fn path(loss: &Loss, file: FileId) -> Option<&str> {
    loss.paths.get(&file).map(|path| std::str::from_utf8(path).unwrap())
}

/// A client with a file of 5 bytes, whose changes do not arrive from now on.
fn cut_off(server: &Server) -> (Client, FileId) {
    let client = server.client();
    let file = client.create("file");
    client.write(file, WriteAt::Offset(0), b"first");
    client.run(|fs| fs.fsync(file)).unwrap();
    client.cut();
    (client, file)
}

#[test]
fn what_is_under_way_when_a_session_ends_is_kept_by_somebody() {
    let server = Server::new();
    let (client, file) = cut_off(&server);
    let losses = losses(&client);
    client.write(file, WriteAt::End, b" second");
    let new = client.create("new");
    client.write(new, WriteAt::Offset(7), b"content");
    // It notices itself that its session may have ended, and forgets what it knows.
    client.fs.forget_everything();
    server.begin_again(&client);
    let loss = next(&losses);
    assert_eq!(calls(&loss), [" second at 5", "create new", "content at 7"]);
    assert_eq!((path(&loss, file), path(&loss, new)), (Some("/file"), Some("/new")));
    assert!(losses.is_empty());
    assert_eq!(server.world.read(file), b"first");
}

#[test]
fn what_the_server_refuses_is_kept_by_somebody() {
    let server = Server::new();
    let (client, file) = cut_off(&server);
    let losses = losses(&client);
    client.write(file, WriteAt::Offset(0), b"FIRST");
    // The file was made by the first, and written by the second.
    let (number, error) = (ChangeNumber(3), Error::AccessDenied);
    client.fs.receive(ToClient::Failed { number, error });
    let loss = next(&losses);
    assert_eq!(calls(&loss), ["FIRST at 0"]);
    assert_eq!(path(&loss, file), Some("/file"));
    assert!(loss.reason.contains(&Error::AccessDenied.to_string()), "{}", loss.reason);
    // It is told once.
    server.begin_again(&client);
    client.fs.close();
    drop(client);
    assert!(losses.is_empty());
}

#[test]
fn what_is_under_way_when_the_end_comes_is_kept_by_somebody() {
    let server = Server::new();
    let (client, file) = cut_off(&server);
    let losses = losses(&client);
    client.write(file, WriteAt::Offset(1), b"IR");
    client.fs.close();
    assert_eq!(calls(&next(&losses)), ["IR at 1"]);
    client.fs.close();
    drop(client);
    assert!(losses.is_empty());
}

#[test]
fn what_the_server_has_is_not_lost() {
    let server = Server::new();
    let client = server.client();
    let losses = losses(&client);
    let file = client.create("file");
    client.write(file, WriteAt::Offset(0), b"kept");
    client.run(|fs| fs.fsync(file)).unwrap();
    client.fs.forget_everything();
    server.begin_again(&client);
    client.fs.close();
    let fs = Arc::clone(&client.fs);
    drop(client);
    assert!(losses.is_empty());
    drop(fs);
}
