//! The listening side of a call.

use std::convert::Infallible;
use std::future::{Ready, ready};
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};

use hyper::body::Incoming;
use hyper::server::conn::http2;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpStream;
use tokio::sync::{mpsc, oneshot};
use tokio_rustls::server::TlsStream;
use tokio_stream::wrappers::ReceiverStream;
use tokio_stream::{Stream, StreamExt as _};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::body::Body;
use tonic::server::{Grpc, StreamingService};
use tonic::{Request, Response, Status, Streaming};

use super::codec::{Frames, Outgoing};
use super::link::{AHEAD, Connection, Link, Reader, Writer};
use super::{
    HEADERS, HTTP2_FRAME, KEEP_ALIVE, KEEP_ALIVE_ANSWER, MAX_MESSAGE, Method, RESETS_LOCAL,
    RESETS_PENDING, SEND_BUFFER, STREAMS, Tasks, WINDOW, broke_rules,
};
use crate::mesh::transport::frame::{Frame, FrameError};

type Call = (Streaming<Result<Frame, FrameError>>, mpsc::Sender<Outgoing>);

/// The one call of a connection, taken when it comes.
struct Desk {
    method: Method,
    call: Mutex<Option<oneshot::Sender<Call>>>,
    misused: CancellationToken,
}

/// Waits for the one call that the other end, which TLS has identified, may make. The caller limits the time.
pub(in crate::mesh::transport) async fn accept(
    tasks: &TaskTracker,
    stop: &CancellationToken,
    stream: TlsStream<TcpStream>,
    method: Method,
) -> Result<Link, FrameError> {
    let kill = stop.child_token();
    let finish = CancellationToken::new();
    let misused = CancellationToken::new();
    let (call, called) = oneshot::channel();
    let (ending, ended) = oneshot::channel();
    let desk = Arc::new(Desk {
        method,
        call: Mutex::new(Some(call)),
        misused: misused.clone(),
    });
    let executor = Tasks {
        tracker: tasks.clone(),
        kill: kill.clone(),
    };
    let serving = http2::Builder::new(executor)
        .timer(TokioTimer::new())
        .auto_date_header(false)
        .max_concurrent_streams(STREAMS)
        .max_pending_accept_reset_streams(RESETS_PENDING)
        .max_local_error_reset_streams(RESETS_LOCAL)
        .max_header_list_size(HEADERS)
        .max_frame_size(HTTP2_FRAME)
        .initial_stream_window_size(WINDOW)
        .initial_connection_window_size(WINDOW)
        .max_send_buf_size(SEND_BUFFER)
        .keep_alive_interval(KEEP_ALIVE)
        .keep_alive_timeout(KEEP_ALIVE_ANSWER)
        .serve_connection(
            TokioIo::new(stream),
            hyper::service::service_fn(move |request| answer(Arc::clone(&desk), request)),
        );
    let connection = Connection {
        finish: finish.clone(),
        kill: kill.clone().drop_guard(),
        ended,
    };
    let broke = misused.clone();
    tasks.spawn(async move {
        let _ending = ending;
        tokio::pin!(serving);
        let result = tokio::select! {
            () = kill.cancelled() => return,
            result = serving.as_mut() => result,
            () = finish.cancelled() => {
                serving.as_mut().graceful_shutdown();
                tokio::select! {
                    () = kill.cancelled() => return,
                    result = serving.as_mut() => result,
                }
            }
        };
        if result.is_err_and(|error| broke_rules(&error)) {
            broke.cancel();
        }
    });
    let (stream, frames) = tokio::select! {
        called = called => match called {
            Ok(call) => call,
            // The connection ended without a call.
            Err(_) if misused.is_cancelled() => return Err(FrameError::Bad),
            Err(_) => return Err(std::io::Error::from(std::io::ErrorKind::UnexpectedEof).into()),
        },
        () = misused.cancelled() => return Err(FrameError::Bad),
    };
    Ok(Link {
        reader: Reader { stream, misused },
        writer: Writer { frames },
        connection,
    })
}

async fn answer(
    desk: Arc<Desk>,
    request: hyper::Request<Incoming>,
) -> Result<hyper::Response<Body>, Infallible> {
    let right = request.uri().path() == desk.method.path();
    let call = if right {
        let mut call = desk.call.lock().unwrap_or_else(PoisonError::into_inner);
        call.take()
    } else {
        None
    };
    let Some(call) = call else {
        desk.misused.cancel();
        return Ok(Status::unimplemented("not allowed here").into_http());
    };
    let mut grpc = Grpc::new(Frames).max_decoding_message_size(MAX_MESSAGE);
    Ok(grpc.streaming(HandOver(Some(call)), request).await)
}

/// Gives both directions of the call to whoever waits for it.
struct HandOver(Option<oneshot::Sender<Call>>);

type Replies = Pin<Box<dyn Stream<Item = Result<Outgoing, Status>> + Send>>;

impl StreamingService<Result<Frame, FrameError>> for HandOver {
    type Response = Outgoing;
    type ResponseStream = Replies;
    type Future = Ready<Result<Response<Replies>, Status>>;

    fn call(&mut self, request: Request<Streaming<Result<Frame, FrameError>>>) -> Self::Future {
        let (frames, outgoing) = mpsc::channel(AHEAD);
        let taken = self
            .0
            .take()
            .is_some_and(|call| call.send((request.into_inner(), frames)).is_ok());
        if !taken {
            return ready(Err(Status::unavailable("stopping")));
        }
        let stream: Replies = Box::pin(ReceiverStream::new(outgoing).map(Ok));
        ready(Ok(Response::new(stream)))
    }
}
