//! Joining: one request, one answer, over a connection that a ticket's key opens.

use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use ed25519_dalek::SigningKey;
use tokio::sync::oneshot;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::counters::count;
use super::frame::{self, Frame, FrameError, Kind};
use super::grpc::{self, Link, Method};
use super::{Inner, TransportEvent, dial, registry};
use crate::mesh::identity::{IdentityError, TlsIdentity};
use crate::mesh::ids::TicketId;

/// Time the mesh has for its answer.
const ANSWER: Duration = Duration::from_secs(10);

/// Why no member answered.
#[derive(Debug, thiserror::Error)]
pub enum JoinError {
    /// The ticket's key cannot be used.
    #[error(transparent)]
    Key(#[from] IdentityError),
    /// The ticket names no usable address.
    #[error("the ticket names no address to ask; make a new one with `secmesh invite`")]
    NoAddress,
    /// The request is larger than a frame.
    #[error("the request to join has {0} bytes, the limit is {max}", max = frame::MAX_BODY)]
    TooLarge(usize),
    /// No member answered.
    #[error("no member of the mesh answered:{}", list(.0))]
    Unanswered(Vec<(String, String)>),
}

fn list(tried: &[(String, String)]) -> String {
    tried.iter().fold(String::new(), |text, (address, why)| {
        text + "\n  " + address + ": " + why
    })
}

/// Asks the members at `addresses` (`IP:PORT`), one after the other, until one answers, and returns
/// the answer. `pins` are the members' TLS keys, `seed` the ticket's Ed25519 seed, whose key opens the
/// connection. At most 20 s per address.
///
/// # Errors
/// [`JoinError::Unanswered`] says for each address what went wrong.
pub async fn join(
    addresses: &[String],
    pins: &[[u8; 32]],
    seed: &[u8; 32],
    request: &[u8],
) -> Result<Vec<u8>, JoinError> {
    if request.len() > frame::MAX_BODY {
        return Err(JoinError::TooLarge(request.len()));
    }
    if addresses.is_empty() {
        return Err(JoinError::NoAddress);
    }
    let identity = TlsIdentity::new(&SigningKey::from_bytes(seed))?;
    let mut tried = Vec::new();
    for text in addresses {
        let result = match text.parse::<SocketAddr>() {
            Ok(address) => ask(&identity, pins, address, request).await,
            Err(_) => Err("this is not IP:PORT".to_owned()),
        };
        match result {
            Ok(answer) => return Ok(answer),
            Err(why) => tried.push((text.clone(), why)),
        }
    }
    Err(JoinError::Unanswered(tried))
}

async fn ask(
    identity: &TlsIdentity,
    pins: &[[u8; 32]],
    address: SocketAddr,
    request: &[u8],
) -> Result<Vec<u8>, String> {
    let stream = dial::connect(identity, pins.to_vec(), address)
        .await
        .map_err(|e| match e.kind() {
            std::io::ErrorKind::TimedOut => {
                "no answer within 5 s; is the node up, and does a firewall let this port through?"
                    .to_owned()
            }
            std::io::ErrorKind::ConnectionRefused => {
                "nothing listens there; is the agent running?".to_owned()
            }
            _ => format!("{e}; is this the node that the ticket was made for?"),
        })?;
    let exchange = async {
        let request = Frame::new(Kind::JoinRequest, Bytes::copy_from_slice(request));
        let (tasks, stop) = (TaskTracker::new(), CancellationToken::new());
        let mut link = grpc::open(&tasks, &stop, stream, Method::Join, request).await?;
        let answer = link.reader.read().await?;
        link.close().await;
        Ok(answer)
    };
    match timeout(ANSWER + Duration::from_secs(5), exchange).await {
        Ok(Ok(answer)) if answer.kind == Kind::JoinReply => Ok(answer.body.to_vec()),
        Ok(Ok(_)) => Err("it answered with something else".to_owned()),
        // In TLS 1.3 the server looks at the client's certificate after the client has finished.
        Ok(Err(FrameError::Io(e))) => Err(format!(
            "it closed the connection ({e}); the ticket was used already, has expired, or is for another mesh"
        )),
        Ok(Err(e)) => Err(e.to_string()),
        Err(_) => Err("it took the request and gave no answer within 15 s".to_owned()),
    }
}

/// The member's side: hands the request on and sends the answer, if there is one in time.
pub(super) async fn answer(
    inner: &Inner,
    link: Link,
    source: SocketAddr,
    ticket: TicketId,
    request: Bytes,
) {
    let Ok(_place) = inner.joins.try_acquire() else {
        return inner.refuse(
            source,
            &inner.counters.refused_join_busy,
            "too many requests to join at once",
        );
    };
    count(&inner.counters.join_requests);
    let work = async {
        let (reply, wait) = oneshot::channel();
        registry::tell(
            inner,
            TransportEvent::JoinRequest {
                ticket,
                bytes: request,
                reply,
            },
        )
        .await;
        // Dropped without an answer: refused, and the end of the connection says so.
        let answer = wait
            .await
            .ok()
            .filter(|answer| answer.len() <= frame::MAX_BODY)?;
        let reply = Frame::new(Kind::JoinReply, answer);
        link.writer.write(reply).await.ok()?;
        link.close().await;
        Some(())
    };
    tokio::select! {
        done = timeout(ANSWER, work) => {
            if done.is_err() {
                tracing::warn!(%source, %ticket, "a request to join was not answered within 10 s");
            }
        }
        () = inner.stop.cancelled() => {}
    }
}
