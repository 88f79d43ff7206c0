//! Who is not let in, and what a ticket is good for.

use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{ClientConfig, SupportedProtocolVersion};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio_rustls::TlsConnector;

use super::*;
use crate::mesh::transport::frame::Kind;

/// Accepts any server: what is tested is the server.
#[derive(Debug)]
struct Credulous;

impl rustls::client::danger::ServerCertVerifier for Credulous {
    fn verify_server_cert(
        &self,
        _: &rustls::pki_types::CertificateDer<'_>,
        _: &[rustls::pki_types::CertificateDer<'_>],
        _: &rustls::pki_types::ServerName<'_>,
        _: &[u8],
        _: rustls::pki_types::UnixTime,
    ) -> Result<rustls::client::danger::ServerCertVerified, rustls::Error> {
        Ok(rustls::client::danger::ServerCertVerified::assertion())
    }
    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &rustls::pki_types::CertificateDer<'_>,
        _: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        Ok(rustls::client::danger::HandshakeSignatureValid::assertion())
    }
    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &rustls::pki_types::CertificateDer<'_>,
        _: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        Ok(rustls::client::danger::HandshakeSignatureValid::assertion())
    }
    fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
        vec![
            rustls::SignatureScheme::ED25519,
            rustls::SignatureScheme::ECDSA_NISTP256_SHA256,
        ]
    }
}

/// Connects as whoever `key` is (or nobody), and waits for the server to close.
async fn intrude(
    to: &TransportHandle,
    key: Option<CertifiedKey>,
    version: &'static SupportedProtocolVersion,
) {
    let builder = ClientConfig::builder_with_provider(Arc::new(
        rustls::crypto::aws_lc_rs::default_provider(),
    ))
    .with_protocol_versions(&[version])
    .unwrap()
    .dangerous()
    .with_custom_certificate_verifier(Arc::new(Credulous));
    let mut config = match key {
        None => builder.with_no_client_auth(),
        Some(key) => builder.with_client_cert_resolver(Arc::new(SingleCertAndKey::from(key))),
    };
    config.alpn_protocols = vec![b"h2".to_vec()];
    let tcp = TcpStream::connect(to.local_addr()).await.unwrap();
    if let Ok(mut stream) = TlsConnector::from(Arc::new(config))
        .connect(tls::server_name(), tcp)
        .await
    {
        // The beginning of HTTP/2, as a client sends it before it hears anything.
        let _ = stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await;
        closes(&mut stream).await;
    }
}

/// The other end closes without having said anything.
async fn closes<R: AsyncRead + Unpin>(stream: &mut R) {
    let mut answer = Vec::new();
    let _ = timeout(PATIENCE, stream.read_to_end(&mut answer))
        .await
        .expect("closed in time");
    assert!(answer.is_empty(), "a stranger was told {answer:?}");
}

/// The call is refused, or ends without a frame.
async fn refused(link: Result<Link, FrameError>) {
    if let Ok(mut link) = link {
        let frame = timeout(PATIENCE, link.reader.read())
            .await
            .expect("closed in time");
        assert!(frame.is_err(), "{frame:?}");
    }
}

fn certified(n: u8) -> CertifiedKey {
    tls(n).certified().as_ref().clone()
}

#[tokio::test(flavor = "multi_thread")]
async fn strangers_are_refused_and_counted() {
    let (a, mut events) = start(1, &members(&[1, 2]));
    let tls13 = &rustls::version::TLS13;
    intrude(&a, None, tls13).await;
    counted(&a, "refused_no_certificate", 1).await;
    intrude(&a, Some(certified(9)), tls13).await;
    counted(&a, "refused_unknown_certificate", 1).await;
    intrude(&a, Some(certified(2)), &rustls::version::TLS12).await;
    counted(&a, "refused_tls_incompatible", 1).await;
    // A member's certificate without its key.
    let stolen = CertifiedKey::new(certified(2).cert, certified(9).key);
    intrude(&a, Some(stolen), tls13).await;
    counted(&a, "refused_bad_signature", 1).await;
    // This node's own key, used by somebody else.
    intrude(&a, Some(certified(1)), tls13).await;
    counted(&a, "refused_bad_frame", 1).await;
    for garbage in [
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n".as_slice(),
        &[0; 300],
        &[0xff; 300],
    ] {
        let mut tcp = TcpStream::connect(a.local_addr()).await.unwrap();
        tcp.write_all(garbage).await.unwrap();
        // A TLS alert may come back.
        let _ = timeout(PATIENCE, tcp.read_to_end(&mut Vec::new()))
            .await
            .expect("closed in time");
    }
    counted(&a, "refused_not_tls", 3).await;
    assert_eq!(counter(&a, "connections_up"), 0);
    assert!(events.try_recv().is_none(), "nobody came up");
    assert!(a.connected().is_empty());
    a.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn slow_handshakes_end_and_one_source_gets_only_so_many() {
    let (a, _events) = start(1, &members(&[1, 2]));
    let mut slow = Vec::new();
    for _ in 0..12 {
        let mut tcp = TcpStream::connect(a.local_addr()).await.unwrap();
        // The beginning of a ClientHello, and then nothing.
        tcp.write_all(&[0x16, 3, 1, 0, 200, 1]).await.unwrap();
        slow.push(tcp);
    }
    counted(&a, "refused_source_busy", 4).await;
    counted(&a, "refused_handshake_timeout", 8).await;
    // A member that finishes TLS and never says Hello ends in the same way.
    let mut mute = dial::connect(&tls(2), vec![tls(1).spki_sha256()], a.local_addr())
        .await
        .unwrap();
    // It may hear the settings of HTTP/2: it is a member.
    let _ = timeout(PATIENCE, mute.read_to_end(&mut Vec::new()))
        .await
        .expect("closed in time");
    counted(&a, "refused_handshake_timeout", 9).await;
    assert_eq!(counter(&a, "refused_source_busy"), 4);
    a.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn another_mesh_or_version_is_refused() {
    let allowed = members(&[1, 2]);
    let (a, mut events) = start(1, &allowed);
    let (b, _b) = start_on(2, V4, MeshId([6; 32]), &allowed);
    b.set_peers(vec![address(1, &a)]);
    counted(&a, "refused_wrong_mesh", 1).await;
    b.shutdown().await;
    let other = Frame::new(Kind::Hello, [0, 1, 1, 2, 3].as_slice());
    refused(call(&tls(2), 1, &a, Method::Session, other).await).await;
    counted(&a, "refused_wrong_version", 1).await;
    assert!(events.try_recv().is_none());
    a.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_frames_of_members_end_the_connection() {
    let (a, mut events) = start(1, &members(&[1, 2]));
    let mut large = vec![0x0a, 0x82, 0x80, 0x04, 2];
    large.resize(5 + MAX_MESSAGE + 1, 7);
    let bad: [(&[u8], &str); 7] = [
        (&large, "refused_oversized"),
        (&[], "refused_bad_frame"),
        (&[0x0a, 0], "refused_bad_frame"),
        (&[0x0a, 1, 99], "refused_bad_frame"),
        (&[0x0a, 1, 5, 0], "refused_bad_frame"),
        (&[0x0a, 1, Kind::Hello as u8], "refused_bad_frame"),
        (&[0x0a, 1, Kind::JoinRequest as u8], "refused_bad_frame"),
    ];
    for (bytes, name) in bad {
        let before = counter(&a, name);
        let mut link = session(2, 1, &a).await;
        welcomed(&mut link).await.unwrap();
        up(&mut events, 2).await;
        link.writer.write_raw(bytes).await;
        counted(&a, name, before + 1).await;
        let told = event(&mut events).await;
        assert!(
            matches!(told, TransportEvent::Garbage { from } if from == id(2)),
            "{told:?}"
        );
        down(&mut events, 2).await;
    }
    a.shutdown().await;
}

/// An HTTP/2 request to a path, with an empty body.
fn request(path: &str) -> hyper::Request<tonic::body::Body> {
    hyper::Request::builder()
        .method("POST")
        .uri(format!("https://secmesh{path}"))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .body(tonic::body::Body::empty())
        .unwrap()
}

/// The body of a session's call with its Hello; it ends when the sender is dropped.
async fn hello() -> (mpsc::Sender<Bytes>, tonic::body::Body) {
    let (hold, body) = mpsc::channel::<Bytes>(1);
    let body = http_body_util::StreamBody::new(tokio_stream::StreamExt::map(
        tokio_stream::wrappers::ReceiverStream::new(body),
        |bytes| Ok::<_, std::convert::Infallible>(http_body::Frame::data(bytes)),
    ));
    let mut hello = Vec::new();
    Frame::hello(&MESH).encode(&mut hello);
    let mut message = vec![0, 0, 0, 0, u8::try_from(hello.len()).unwrap()];
    message.extend(hello);
    hold.send(message.into()).await.unwrap();
    (hold, tonic::body::Body::new(body))
}

async fn raw(from: u8, to: u8, at: &TransportHandle) -> grpc::Raw {
    let stream = dial::connect(&tls(from), vec![tls(to).spki_sha256()], at.local_addr())
        .await
        .unwrap();
    grpc::raw(&TaskTracker::new(), &CancellationToken::new(), stream).await
}

#[tokio::test(flavor = "multi_thread")]
async fn http2_is_bounded() {
    let (a, mut events) = start(1, &members(&[1, 2]));
    // Another method, the method of joiners, none.
    for (n, path) in ["/grpc.reflection/List", Method::Join.path(), "/"]
        .into_iter()
        .enumerate()
    {
        let mut raw = raw(2, 1, &a).await;
        let answer = timeout(PATIENCE, raw.send.send_request(request(path))).await;
        if let Ok(answer) = answer.expect("an answer in time") {
            assert!(answer.headers().contains_key("grpc-status"), "{answer:?}");
        }
        counted(&a, "refused_bad_frame", n as u64 + 1).await;
    }
    // A session with headers beyond the limit: the connection or the stream ends, and nobody comes up.
    let mut large = raw(2, 1, &a).await;
    let (hold, body) = hello().await;
    let mut flood = request(Method::Session.path()).map(|_| body);
    let value = "x".repeat(5000).parse().unwrap();
    flood.headers_mut().insert("x", value);
    let answer = timeout(PATIENCE, large.send.send_request(flood)).await;
    let refused = match answer.expect("an answer in time") {
        Ok(answer) => answer.status() == 431,
        Err(_) => true,
    };
    assert!(refused, "a header list of 5 kB was taken");
    drop((large, hold));
    assert!(events.try_recv().is_none(), "nobody came up");
    // A second call beside a session.
    let mut twice = raw(2, 1, &a).await;
    let (hold, body) = hello().await;
    let first = request(Method::Session.path()).map(|_| body);
    let session = twice.send.send_request(first).await.unwrap();
    up(&mut events, 2).await;
    let before = counter(&a, "refused_bad_frame");
    let _ = twice
        .send
        .send_request(request(Method::Session.path()))
        .await;
    counted(&a, "refused_bad_frame", before + 1).await;
    down(&mut events, 2).await;
    drop((session, hold));
    a.shutdown().await;
}

/// HEADERS of stream *n* with these fields, in HPACK.
fn headers(n: u32, fields: &[u8]) -> Vec<u8> {
    let mut frame = vec![0, 0, u8::try_from(fields.len()).unwrap(), 1, 4];
    frame.extend((2 * n + 1).to_be_bytes());
    frame.extend(fields);
    frame
}

/// POST, https, path "/", out of HPACK's static table.
const POST: [u8; 3] = [0x83, 0x87, 0x84];

/// `RST_STREAM` of stream *n* (CANCEL).
fn reset(n: u32) -> Vec<u8> {
    let mut frame = vec![0, 0, 4, 3, 0];
    frame.extend((2 * n + 1).to_be_bytes());
    frame.extend([0, 0, 0, 8]);
    frame
}

/// Why a member that sends these frames, all at once, is told to go away (the code of HTTP/2).
async fn sent_away(a: &TransportHandle, frames: impl IntoIterator<Item = Vec<u8>>) -> Option<u32> {
    let mut stream = dial::connect(&tls(2), vec![tls(1).spki_sha256()], a.local_addr())
        .await
        .unwrap();
    // Preface, and empty SETTINGS.
    let mut bytes = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
    bytes.extend([0, 0, 0, 4, 0, 0, 0, 0, 0]);
    bytes.extend(frames.into_iter().flatten());
    stream.write_all(&bytes).await.unwrap();
    let mut answer = Vec::new();
    let _ = timeout(PATIENCE, stream.read_to_end(&mut answer))
        .await
        .expect("closed in time");
    let (mut rest, mut code) = (answer.as_slice(), None);
    while let Some((head, after)) = rest.split_first_chunk::<9>() {
        let len = usize::from(u16::from_be_bytes([head[1], head[2]]));
        let (body, next) = after.split_at(len.min(after.len()));
        if head[3] == 7 {
            code = Some(u32::from_be_bytes(body[4..8].try_into().unwrap()));
        }
        rest = next;
    }
    code
}

/// `ENHANCE_YOUR_CALM`.
const CALM: Option<u32> = Some(11);

/// Streams opened and reset at once, over and over.
#[tokio::test(flavor = "multi_thread")]
async fn rapid_resets_end_the_connection() {
    let (a, mut events) = start(1, &members(&[1, 2]));
    // More than four, and fewer than what HTTP/2 puts up with by itself.
    for streams in [6, 200] {
        let frames = (0..streams).flat_map(|n| [headers(n, &POST), reset(n)]);
        assert_eq!(sent_away(&a, frames).await, CALM, "{streams} streams");
    }
    counted(&a, "refused_bad_frame", 2).await;
    assert!(events.try_recv().is_none(), "nobody came up");
    a.shutdown().await;
}

/// Streams that this end has to reset, because what they begin with makes no sense.
#[tokio::test(flavor = "multi_thread")]
async fn streams_that_make_no_sense_end_the_connection() {
    let (a, mut events) = start(1, &members(&[1, 2]));
    // With a length of "x".
    let senseless = [POST.as_slice(), &[0x0f, 0x0d, 1, b'x']].concat();
    let frames = (0..10).map(|n| headers(n, &senseless));
    assert_eq!(sent_away(&a, frames).await, CALM);
    counted(&a, "refused_bad_frame", 1).await;
    assert!(events.try_recv().is_none(), "nobody came up");
    a.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_ticket_is_good_for_a_request_and_nothing_else() {
    let allowed = members(&[1]);
    let (seed, ticket) = ([77; 32], TicketId([8; 16]));
    let public = SigningKey::from_bytes(&seed).verifying_key().to_bytes();
    let pin = crate::mesh::identity::ed25519_spki_sha256(&public);
    let (a, mut events) = start(1, &allowed);
    let (at, pins) = ([a.local_addr().to_string()], [tls(1).spki_sha256()]);
    // Not known yet.
    let error = join(&at, &pins, &seed, b"me").await.unwrap_err();
    assert!(error.to_string().contains("has expired"), "{error}");
    counted(&a, "refused_unknown_certificate", 1).await;
    allowed.insert(pin, PeerIdentity::Ticket(ticket));
    let asked = tokio::spawn({
        let at = ["127.0.0.1:1".to_owned(), at[0].clone()];
        async move { join(&at, &pins, &seed, b"me").await }
    });
    let TransportEvent::JoinRequest {
        ticket: which,
        bytes,
        reply,
    } = event(&mut events).await
    else {
        panic!()
    };
    assert_eq!((which, bytes.as_ref()), (ticket, b"me".as_slice()));
    reply.send(b"welcome".to_vec()).unwrap();
    assert_eq!(asked.await.unwrap().unwrap(), b"welcome");
    // Refused by those who decide.
    let asked = tokio::spawn({
        let at = at.clone();
        async move { join(&at, &pins, &seed, b"me").await }
    });
    let TransportEvent::JoinRequest { reply, .. } = event(&mut events).await else {
        panic!()
    };
    drop(reply);
    assert!(asked.await.unwrap().is_err());
    // Anything else ends the connection.
    let identity = TlsIdentity::new(&SigningKey::from_bytes(&seed)).unwrap();
    let hello = Frame::hello(&MESH).body;
    let wrong = [Kind::Hello, Kind::Message, Kind::Ping, Kind::JoinReply]
        .map(|kind| (Method::Join, kind))
        .into_iter()
        .chain([(Method::Session, Kind::Hello)]);
    for (n, (method, kind)) in wrong.enumerate() {
        let first = Frame::new(kind, hello.clone());
        refused(call(&identity, 1, &a, method, first).await).await;
        counted(&a, "refused_bad_frame", n as u64 + 1).await;
    }
    assert!(events.try_recv().is_none());
    // Used up.
    allowed.remove(&pin);
    assert!(join(&at, &pins, &seed, b"me").await.is_err());
    a.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_joiner_says_why_nobody_answered() {
    let (a, _events) = start(1, &members(&[1]));
    let at = [
        "nonsense".to_owned(),
        "127.0.0.1:1".to_owned(),
        a.local_addr().to_string(),
    ];
    // The node at the third address is not the one the ticket was made for.
    let error = join(&at, &[[0; 32]], &[7; 32], b"me")
        .await
        .unwrap_err()
        .to_string();
    for part in [
        "nonsense: this is not IP:PORT",
        "127.0.0.1:1: nothing listens",
        "is this the node",
    ] {
        assert!(error.contains(part), "{part} in {error}");
    }
    assert!(matches!(
        join(&[], &[], &[7; 32], b"").await,
        Err(JoinError::NoAddress)
    ));
    let large = vec![0; MAX_MESSAGE + 1];
    assert!(matches!(
        join(&at, &[], &[7; 32], &large).await,
        Err(JoinError::TooLarge(_))
    ));
    a.shutdown().await;
}
