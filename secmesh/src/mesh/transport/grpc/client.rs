//! The calling side of a call.

use std::pin::Pin;
use std::task::{Context, Poll};

use http::Uri;
use http::uri::PathAndQuery;
use hyper::body::Incoming;
use hyper::client::conn::http2::{self, SendRequest};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpStream;
use tokio::sync::{mpsc, oneshot};
use tokio_rustls::client::TlsStream;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::Request;
use tonic::body::Body;
use tonic::client::Grpc;

use super::codec::Frames;
use super::link::{AHEAD, Connection, Link, Reader, Writer, broken};
use super::{
    HEADERS, HTTP2_FRAME, MAX_MESSAGE, Method, RESETS_LOCAL, RESETS_PENDING, SEND_BUFFER, Tasks,
    WINDOW, broke_rules,
};
use crate::mesh::transport::frame::{Frame, FrameError};

/// Nobody looks the name up or checks it: the peer is known by its key.
const ORIGIN: &str = "https://secmesh";

/// Begins the HTTP/2 connection of a call.
async fn connect(
    tasks: &TaskTracker,
    stop: &CancellationToken,
    stream: TlsStream<TcpStream>,
) -> Result<(SendRequest<Body>, Connection, CancellationToken), FrameError> {
    let kill = stop.child_token();
    let finish = CancellationToken::new();
    let misused = CancellationToken::new();
    let (ending, ended) = oneshot::channel();
    let executor = Tasks {
        tracker: tasks.clone(),
        kill: kill.clone(),
    };
    let guard = kill.clone().drop_guard();
    let (send, connection) = http2::Builder::new(executor)
        .timer(TokioTimer::new())
        .max_pending_accept_reset_streams(RESETS_PENDING)
        .max_local_error_reset_streams(RESETS_LOCAL)
        .max_header_list_size(HEADERS)
        .max_frame_size(HTTP2_FRAME)
        .initial_stream_window_size(WINDOW)
        .initial_connection_window_size(WINDOW)
        .max_send_buf_size(SEND_BUFFER)
        .handshake(TokioIo::new(stream))
        .await
        .map_err(|error| FrameError::Io(std::io::Error::other(error)))?;
    let broke = misused.clone();
    tasks.spawn(async move {
        let _ending = ending;
        tokio::select! {
            () = kill.cancelled() => {}
            // Ends by itself, cleanly, when the call has ended at both sides.
            result = connection => {
                if result.is_err_and(|error| broke_rules(&error)) {
                    broke.cancel();
                }
            }
        }
    });
    let connection = Connection {
        finish,
        kill: guard,
        ended,
    };
    Ok((send, connection, misused))
}

/// Makes a call, with its first frame, and waits until the other end takes it. The caller limits the time.
pub(in crate::mesh::transport) async fn open(
    tasks: &TaskTracker,
    stop: &CancellationToken,
    stream: TlsStream<TcpStream>,
    method: Method,
    first: Frame,
) -> Result<Link, FrameError> {
    let (send, connection, misused) = connect(tasks, stop, stream).await?;
    let (frames, outgoing) = mpsc::channel(AHEAD);
    let writer = Writer { frames };
    writer.write(first).await?;
    let mut grpc = Grpc::with_origin(Calls(send), Uri::from_static(ORIGIN))
        .max_decoding_message_size(MAX_MESSAGE);
    grpc.ready()
        .await
        .map_err(|error| FrameError::Io(std::io::Error::other(error)))?;
    let response = grpc
        .streaming(
            Request::new(ReceiverStream::new(outgoing)),
            PathAndQuery::from_static(method.path()),
            Frames,
        )
        .await
        .map_err(|status| broken(&status))?;
    Ok(Link {
        reader: Reader {
            stream: response.into_inner(),
            misused,
        },
        writer,
        connection,
    })
}

/// An HTTP/2 connection as tonic wants it.
struct Calls(SendRequest<Body>);

impl tower_service::Service<http::Request<Body>> for Calls {
    type Response = http::Response<Incoming>;
    type Error = hyper::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Self::Error>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.0.poll_ready(context)
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        Box::pin(self.0.send_request(request))
    }
}

/// A connection with nothing but HTTP/2, to do on it what no node does.
#[cfg(test)]
pub(in crate::mesh::transport) struct Raw {
    pub(in crate::mesh::transport) send: SendRequest<Body>,
    _connection: Connection,
}

/// See [`Raw`].
#[cfg(test)]
pub(in crate::mesh::transport) async fn raw(
    tasks: &TaskTracker,
    stop: &CancellationToken,
    stream: TlsStream<TcpStream>,
) -> Raw {
    let (send, connection, _) = connect(tasks, stop, stream).await.unwrap();
    Raw {
        send,
        _connection: connection,
    }
}
