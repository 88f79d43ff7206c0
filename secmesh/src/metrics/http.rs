//! As much HTTP/1.1 as a scraper needs: one `GET /metrics` per connection, everything bounded.
//!
//! A server library would be the heaviest dependency of the agent for one path; RFC 9112 lets a server close
//! after each answer, and refuse whatever it does not offer.

use std::{
    io,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use serde_json::Value;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    sync::{Semaphore, mpsc, oneshot},
    time::timeout,
};
use tracing::debug;

use crate::api::{server::Call, types::Request};

/// Conversations at one time; further ones are closed at once, and counted.
const MAX_CONVERSATIONS: usize = 8;
/// Longest request head, bytes.
const MAX_HEAD: usize = 8 << 10;
/// Longest time for a whole conversation.
const TIMEOUT: Duration = Duration::from_secs(10);
/// The text format that is spoken.
const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// What came in.
#[derive(Debug, Default)]
pub struct ServerCounters {
    /// Answered with the metrics.
    pub served: AtomicU64,
    /// Answered with an error, or not at all: not a request for the metrics, too long, too slow.
    pub refused: AtomicU64,
    /// Closed unread: too many at a time.
    pub busy: AtomicU64,
}

/// A bound listener.
pub struct Server {
    listener: TcpListener,
    counters: Arc<ServerCounters>,
}

impl Server {
    /// Binds `listen`.
    ///
    /// # Errors
    ///
    /// The system's refusal, such as an address in use.
    pub async fn bind(listen: SocketAddr) -> io::Result<Self> {
        Ok(Self {
            listener: TcpListener::bind(listen).await?,
            counters: Arc::default(),
        })
    }

    /// What came in so far.
    pub fn counters(&self) -> Arc<ServerCounters> {
        Arc::clone(&self.counters)
    }

    /// Where it listens.
    ///
    /// # Errors
    ///
    /// The system's refusal.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Answers scrapes with what the agent says, until `calls` closes.
    pub async fn run(self, calls: mpsc::Sender<Call>) {
        let slots = Arc::new(Semaphore::new(MAX_CONVERSATIONS));
        loop {
            let stream = tokio::select! {
                accepted = self.listener.accept() => match accepted {
                    Ok((stream, _)) => stream,
                    Err(error) => {
                        debug!(%error, "accepting a scrape");
                        tokio::time::sleep(Duration::from_millis(100)).await;
                        continue;
                    }
                },
                () = calls.closed() => return,
            };
            let Ok(slot) = Arc::clone(&slots).try_acquire_owned() else {
                self.counters.busy.fetch_add(1, Ordering::Relaxed);
                continue;
            };
            let (calls, counters) = (calls.clone(), Arc::clone(&self.counters));
            tokio::spawn(async move {
                let counter = match timeout(TIMEOUT, converse(stream, calls)).await {
                    Ok(Ok(true)) => &counters.served,
                    _ => &counters.refused,
                };
                counter.fetch_add(1, Ordering::Relaxed);
                drop(slot);
            });
        }
    }
}

/// What to answer to a request head.
#[derive(Debug, PartialEq, Eq)]
enum Answer {
    Metrics,
    Error(&'static str, &'static str),
}

fn route(head: &[u8]) -> Answer {
    let line = head.split(|b| *b == b'\r').next().unwrap_or_default();
    let mut words = line.split(|b| *b == b' ');
    let (method, target, version) = (words.next(), words.next(), words.next());
    match (method, target, version, words.next()) {
        (Some(method), Some(target), Some(version), None) if version.starts_with(b"HTTP/1.") => {
            let path = target.split(|b| *b == b'?').next().unwrap_or_default();
            if path != b"/metrics" {
                Answer::Error("404 Not Found", "")
            } else if method == b"GET" {
                Answer::Metrics
            } else {
                Answer::Error("405 Method Not Allowed", "Allow: GET\r\n")
            }
        }
        _ => Answer::Error("400 Bad Request", ""),
    }
}

/// Reads one request and answers it. `true`: with the metrics.
async fn converse(mut stream: TcpStream, calls: mpsc::Sender<Call>) -> io::Result<bool> {
    let mut head = Vec::with_capacity(512);
    let answer = loop {
        if head.windows(4).any(|end| end == b"\r\n\r\n") {
            break route(&head);
        }
        if head.len() >= MAX_HEAD {
            break Answer::Error("431 Request Header Fields Too Large", "");
        }
        let mut part = [0; 1024];
        let read = stream.read(&mut part).await?;
        if read == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        head.extend(part.iter().take(read));
    };
    let text = match &answer {
        Answer::Metrics => metrics(calls).await,
        Answer::Error(..) => None,
    };
    let (status, extra, kind, body) = match (&answer, &text) {
        (Answer::Metrics, Some(text)) => ("200 OK", "", CONTENT_TYPE, text.as_str()),
        (Answer::Metrics, None) => (
            "503 Service Unavailable",
            "",
            "text/plain",
            "the agent is stopping\n",
        ),
        (Answer::Error(status, extra), _) => (*status, *extra, "text/plain", "GET /metrics\n"),
    };
    let response = format!(
        "HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {}\r\nConnection: close\r\n{extra}\r\n{body}",
        body.len()
    );
    stream.write_all(response.as_bytes()).await?;
    stream.shutdown().await?;
    Ok(text.is_some())
}

async fn metrics(calls: mpsc::Sender<Call>) -> Option<String> {
    let (reply, answer) = oneshot::channel();
    let request = Request::Metrics {};
    calls.send(Call { request, reply }).await.ok()?;
    match answer.await.ok()? {
        Value::Object(mut object) => match object.remove("text") {
            Some(Value::String(text)) => Some(text),
            _ => None,
        },
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn only_a_get_of_the_one_path_is_answered() {
        assert_eq!(route(b"GET /metrics HTTP/1.1\r\nHost: x"), Answer::Metrics);
        assert_eq!(route(b"GET /metrics?x=1 HTTP/1.0\r\n"), Answer::Metrics);
        for (head, status) in [
            (&b"GET / HTTP/1.1\r\n"[..], "404"),
            (b"GET /metrics/.. HTTP/1.1\r\n", "404"),
            (b"POST /metrics HTTP/1.1\r\n", "405"),
            (b"GET /metrics HTTP/2\r\n", "400"),
            (b"GET /metrics HTTP/1.1 x\r\n", "400"),
            (b"GET /metrics", "400"),
            (b"\r\n\r\n", "400"),
            (b"\xff\xfe\r\n", "400"),
        ] {
            let Answer::Error(found, _) = route(head) else {
                panic!("{head:?} is answered");
            };
            assert!(found.starts_with(status), "{head:?}: {found}");
        }
    }

    async fn server() -> (SocketAddr, Arc<ServerCounters>) {
        let server = Server::bind("127.0.0.1:0".parse().unwrap()).await.unwrap();
        let (at, counters) = (server.local_addr().unwrap(), server.counters());
        let (calls, mut received) = mpsc::channel::<Call>(1);
        tokio::spawn(server.run(calls));
        tokio::spawn(async move {
            while let Some(call) = received.recv().await {
                assert!(matches!(call.request, Request::Metrics {}));
                drop(call.reply.send(json!({"text": "a 1\n"})));
            }
        });
        (at, counters)
    }

    async fn said(at: SocketAddr, request: &[u8]) -> String {
        let mut stream = TcpStream::connect(at).await.unwrap();
        stream.write_all(request).await.unwrap();
        let mut answer = String::new();
        // A refusal may reset the connection while we still send.
        drop(stream.read_to_string(&mut answer).await);
        answer
    }

    #[tokio::test]
    async fn a_scrape_gets_the_text_and_nothing_else_gets_anything() {
        let (at, counters) = server().await;
        let answer = said(at, b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n").await;
        assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
        assert!(answer.contains("Content-Length: 4\r\n") && answer.ends_with("\r\n\r\na 1\n"));
        let long = [
            b"GET /metrics HTTP/1.1\r\nX: ".to_vec(),
            vec![b'x'; MAX_HEAD],
        ]
        .concat();
        assert!(said(at, &long).await.starts_with("HTTP/1.1 431"));
        assert!(
            said(at, b"DELETE /metrics HTTP/1.1\r\n\r\n")
                .await
                .contains("Allow: GET")
        );
        // Whoever holds all places open keeps others out only as long as the timeout lasts.
        let mut held = Vec::new();
        for _ in 0..MAX_CONVERSATIONS {
            held.push(TcpStream::connect(at).await.unwrap());
        }
        while counters.busy.load(Ordering::Relaxed) == 0 {
            assert_eq!(
                said(at, b"GET /metrics HTTP/1.1\r\n\r\n").await.find("431"),
                None
            );
        }
        assert!(counters.served.load(Ordering::Relaxed) >= 1);
    }
}
