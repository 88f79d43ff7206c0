//! Tests over real sockets on the loopback interface.

#[cfg(feature = "nats")]
mod knocks;
mod limits;
mod reconnects;
mod refusals;

use ed25519_dalek::SigningKey;
use tokio::time::{sleep, timeout};

use super::frame::{Frame, FrameError};
use super::grpc::{Link, Method};
use super::*;
use crate::clock::SystemClock;

const MESH: MeshId = MeshId([5; 32]);
const V4: &str = "127.0.0.1:0";

fn id(n: u8) -> NodeId {
    NodeId([n; 16])
}

fn tls(n: u8) -> TlsIdentity {
    TlsIdentity::new(&SigningKey::from_bytes(&[n; 32])).unwrap()
}

/// Nodes of these numbers are members.
fn members(numbers: &[u8]) -> Arc<AllowedPeers> {
    let allowed = AllowedPeers::new();
    allowed.replace(
        numbers
            .iter()
            .map(|n| (tls(*n).spki_sha256(), PeerIdentity::Member(id(*n)))),
    );
    Arc::new(allowed)
}

type Events = TransportEvents;

fn start_on(
    n: u8,
    listen: &str,
    mesh: MeshId,
    allowed: &Arc<AllowedPeers>,
) -> (TransportHandle, Events) {
    Transport::start(TransportConfig {
        listen: listen.parse().unwrap(),
        node: id(n),
        tls: tls(n),
        mesh,
        carrier: Carrier::Grpc,
        allowed: Arc::clone(allowed),
        peers: Vec::new(),
        clock: Arc::new(SystemClock),
    })
    .unwrap()
}

fn start(n: u8, allowed: &Arc<AllowedPeers>) -> (TransportHandle, Events) {
    start_on(n, V4, MESH, allowed)
}

fn address(n: u8, of: &TransportHandle) -> PeerAddress {
    PeerAddress {
        node: id(n),
        spki_sha256: tls(n).spki_sha256(),
        address: of.local_addr(),
    }
}

/// How long what takes milliseconds on an idle machine may take on a busy one. Beyond it something hangs.
const PATIENCE: Duration = Duration::from_secs(30);

async fn event(events: &mut Events) -> TransportEvent {
    timeout(PATIENCE, events.recv())
        .await
        .expect("an event in time")
        .expect("the transport runs")
}

async fn up(events: &mut Events, n: u8) {
    let event = event(events).await;
    assert!(
        matches!(event, TransportEvent::PeerUp { node, .. } if node == id(n)),
        "{event:?}"
    );
}

/// The peer is gone; what it was counted for just before does not matter.
async fn down(events: &mut Events, n: u8) {
    let event = loop {
        match event(events).await {
            TransportEvent::Garbage { .. } => {}
            other => break other,
        }
    };
    assert!(
        matches!(event, TransportEvent::PeerDown { node } if node == id(n)),
        "{event:?}"
    );
}

async fn message(events: &mut Events, n: u8) -> Bytes {
    loop {
        match event(events).await {
            TransportEvent::Message { from, bytes } => {
                assert_eq!(from, id(n));
                return bytes;
            }
            TransportEvent::PeerUp { .. }
            | TransportEvent::PeerAt { .. }
            | TransportEvent::PeerDown { .. }
            | TransportEvent::Garbage { .. } => {}
            other @ TransportEvent::JoinRequest { .. } => panic!("{other:?}"),
        }
    }
}

fn counter(handle: &TransportHandle, name: &str) -> u64 {
    handle
        .counters()
        .into_iter()
        .find(|(n, _)| *n == name)
        .expect("a counter of that name")
        .1
}

/// Dials by hand: TLS as node `from`, and the first frame of a call.
async fn call(
    from: &TlsIdentity,
    to: u8,
    at: &TransportHandle,
    method: Method,
    first: Frame,
) -> Result<Link, FrameError> {
    let stream = dial::connect(from, vec![tls(to).spki_sha256()], at.local_addr()).await?;
    let (tasks, stop) = (TaskTracker::new(), CancellationToken::new());
    let call = grpc::open(&tasks, &stop, stream, method, first);
    timeout(PATIENCE, call).await.expect("an answer in time")
}

/// A session of node `from`, which says Hello and nothing more.
async fn session(from: u8, to: u8, at: &TransportHandle) -> Link {
    call(&tls(from), to, at, Method::Session, Frame::hello(&MESH))
        .await
        .expect("the call is taken")
}

async fn welcomed(link: &mut Link) -> Result<(), FrameError> {
    link.reader.read().await?.check_hello(&MESH)
}

/// Waits until a counter is at least `value`.
async fn counted(handle: &TransportHandle, name: &str, value: u64) {
    let reached = |handle: &TransportHandle| counter(handle, name) >= value;
    becomes(handle, reached, &format!("{name} at least {value}")).await;
}

/// Waits until something is so.
async fn becomes(handle: &TransportHandle, is: impl Fn(&TransportHandle) -> bool, what: &str) {
    let begun = SystemClock.mono_ns();
    while !is(handle) {
        let waited = Duration::from_nanos(SystemClock.mono_ns() - begun);
        assert!(waited < PATIENCE, "not {what}: {:?}", handle.counters());
        sleep(Duration::from_millis(10)).await;
    }
}

/// Says something until it is heard: what was handed to a connection that ends is lost with it.
async fn heard(from: (u8, &TransportHandle), to: (u8, &mut Events), what: &'static str) {
    let (from, handle) = from;
    let (to, events) = to;
    for _ in 0..30 {
        handle.send(id(to), Bytes::from_static(what.as_bytes()));
        if let Ok(said) = timeout(Duration::from_secs(1), message(events, from)).await {
            return assert_eq!(said, what);
        }
    }
    panic!("{from} is not heard: {:?}", handle.counters());
}

#[tokio::test(flavor = "multi_thread")]
async fn two_members_talk_over_ipv4_and_ipv6() {
    for listen in [V4, "[::1]:0"] {
        let allowed = members(&[1, 2]);
        let (a, mut from_a) = start_on(1, listen, MESH, &allowed);
        let (b, mut from_b) = start_on(2, listen, MESH, &allowed);
        // Only one knows where the other is.
        b.set_peers(vec![address(1, &a)]);
        up(&mut from_a, 2).await;
        up(&mut from_b, 1).await;
        assert_eq!((a.connected(), b.connected()), (vec![id(2)], vec![id(1)]));
        assert_eq!(
            a.send(id(2), Bytes::from_static(b"hello")),
            SendOutcome::Queued
        );
        assert_eq!(message(&mut from_b, 1).await, "hello");
        let big = Bytes::from(vec![7; MAX_MESSAGE]);
        b.broadcast(&big);
        assert_eq!(message(&mut from_a, 2).await, big);
        assert_eq!(
            a.send(id(2), Bytes::from(vec![7; MAX_MESSAGE + 1])),
            SendOutcome::TooLarge
        );
        assert_eq!(a.send(id(3), Bytes::new()), SendOutcome::NotAMember);
        assert_eq!(a.send(id(1), Bytes::new()), SendOutcome::NotAMember);
        for n in 0..500u32 {
            a.send(id(2), Bytes::copy_from_slice(&n.to_be_bytes()));
        }
        for n in 0..500u32 {
            assert_eq!(
                message(&mut from_b, 1).await,
                n.to_be_bytes().as_slice(),
                "in order"
            );
        }
        a.shutdown().await;
        down(&mut from_b, 1).await;
        assert!(b.connected().is_empty());
        b.shutdown().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wildcard_listener_takes_both_families() {
    let allowed = members(&[1, 2, 3]);
    let (a, mut from_a) = start_on(1, "[::]:0", MESH, &allowed);
    let (b, _b) = start(2, &allowed);
    let (c, _c) = start(3, &allowed);
    let port = a.local_addr().port();
    b.set_peers(vec![PeerAddress {
        address: ([127, 0, 0, 1], port).into(),
        ..address(1, &a)
    }]);
    up(&mut from_a, 2).await;
    c.set_peers(vec![PeerAddress {
        address: (std::net::Ipv6Addr::LOCALHOST, port).into(),
        ..address(1, &a)
    }]);
    up(&mut from_a, 3).await;
    for handle in [a, b, c] {
        handle.shutdown().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn when_both_dial_one_connection_stays() {
    for _ in 0..5 {
        let allowed = members(&[1, 2]);
        let (a, mut from_a) = start(1, &allowed);
        let (b, mut from_b) = start(2, &allowed);
        a.set_peers(vec![address(2, &b)]);
        b.set_peers(vec![address(1, &a)]);
        // By then both have dialled, if the machine is not busy.
        sleep(Duration::from_millis(700)).await;
        heard((1, &a), (2, &mut from_b), "to b").await;
        heard((2, &b), (1, &mut from_a), "to a").await;
        for handle in [&a, &b] {
            // Between two, for a moment, it is none; two at once never become one.
            let one = |handle: &TransportHandle| {
                counter(handle, "connections_up") == counter(handle, "connections_down") + 1
            };
            becomes(handle, one, "one connection").await;
        }
        a.shutdown().await;
        b.shutdown().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_lower_nodes_connection_wins() {
    let allowed = members(&[1, 2]);
    let (a, mut from_a) = start(1, &allowed);
    let (b, mut from_b) = start(2, &allowed);
    b.set_peers(vec![address(1, &a)]);
    up(&mut from_a, 2).await;
    up(&mut from_b, 1).await;
    // Dialled by hand, as node 1 would have if both had begun at once.
    let mut better = session(1, 2, &b).await;
    welcomed(&mut better)
        .await
        .expect("the better connection is taken");
    down(&mut from_b, 1).await;
    up(&mut from_b, 1).await;
    assert_eq!(counter(&b, "duplicate_connections"), 1);
    a.shutdown().await;
    b.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_higher_nodes_second_connection_is_given_up() {
    let allowed = members(&[1, 2]);
    let (a, mut from_a) = start(1, &allowed);
    let (b, mut from_b) = start(2, &allowed);
    a.set_peers(vec![address(2, &b)]);
    up(&mut from_a, 2).await;
    up(&mut from_b, 1).await;
    // It is taken and ended at once: whether the caller hears that it was taken is chance.
    if let Ok(mut worse) = call(&tls(2), 1, &a, Method::Session, Frame::hello(&MESH)).await {
        welcomed(&mut worse)
            .await
            .expect_err("no promise that this one counts");
    }
    counted(&a, "duplicate_connections", 1).await;
    a.send(id(2), Bytes::from_static(b"still here"));
    assert_eq!(message(&mut from_b, 1).await, "still here");
    assert!(from_a.try_recv().is_none(), "nothing went down");
    a.shutdown().await;
    b.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn peers_find_each_other_again_after_a_restart() {
    let allowed = members(&[1, 2]);
    let (a, mut from_a) = start(1, &allowed);
    let (b, mut from_b) = start(2, &allowed);
    let at = address(2, &b);
    a.set_peers(vec![at]);
    up(&mut from_a, 2).await;
    up(&mut from_b, 1).await;
    b.shutdown().await;
    down(&mut from_a, 2).await;
    // Sent while the peer is away; waits.
    assert_eq!(
        a.send(id(2), Bytes::from_static(b"later")),
        SendOutcome::Queued
    );
    sleep(Duration::from_millis(500)).await;
    let (b, mut from_b) = start_on(2, &at.address.to_string(), MESH, &allowed);
    up(&mut from_a, 2).await;
    assert_eq!(message(&mut from_b, 1).await, "later");
    a.shutdown().await;
    b.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_removed_member_is_cut_off() {
    let (mine, theirs) = (members(&[1, 2]), members(&[1, 2]));
    let (a, mut from_a) = start(1, &mine);
    let (b, mut from_b) = start(2, &theirs);
    b.set_peers(vec![address(1, &a)]);
    up(&mut from_a, 2).await;
    up(&mut from_b, 1).await;
    mine.remove(&tls(2).spki_sha256());
    down(&mut from_a, 2).await;
    down(&mut from_b, 1).await;
    assert_eq!(a.send(id(2), Bytes::new()), SendOutcome::NotAMember);
    // It tries again, and fails in the handshake.
    counted(&a, "refused_unknown_certificate", 1).await;
    mine.insert(tls(2).spki_sha256(), PeerIdentity::Member(id(2)));
    up(&mut from_a, 2).await;
    a.shutdown().await;
    b.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_quarantined_member_is_cut_off_by_name_and_comes_back() {
    let (mine, theirs) = (members(&[1, 2]), members(&[1, 2]));
    let (a, mut from_a) = start(1, &mine);
    let (b, mut from_b) = start(2, &theirs);
    b.set_peers(vec![address(1, &a)]);
    up(&mut from_a, 2).await;
    up(&mut from_b, 1).await;
    let key = tls(2).spki_sha256();
    mine.insert(key, PeerIdentity::Quarantined(id(2)));
    down(&mut from_a, 2).await;
    down(&mut from_b, 1).await;
    counted(&a, "sessions_quarantined", 1).await;
    assert_eq!(a.send(id(2), Bytes::new()), SendOutcome::NotAMember);
    counted(&a, "refused_quarantined", 1).await;
    assert_eq!(counter(&a, "refused_unknown_certificate"), 0);
    mine.insert(key, PeerIdentity::Member(id(2)));
    up(&mut from_a, 2).await;
    a.shutdown().await;
    b.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_silent_peer_counts_as_gone() {
    let allowed = members(&[1, 2]);
    let (a, mut from_a) = start(1, &allowed);
    let begun = SystemClock.mono_ns();
    let _link = session(2, 1, &a).await;
    up(&mut from_a, 2).await;
    // Judged by timers of this runtime: on a busy machine all of them are late, and still in their order.
    timeout(Duration::from_secs(10), down(&mut from_a, 2))
        .await
        .expect("after 8 s");
    let seconds = (SystemClock.mono_ns() - begun) as f64 / 1e9;
    assert!(seconds >= 7.9, "{seconds}");
    assert!(counter(&a, "pings_sent") >= 2, "it is asked first");
    a.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_quiet_connection_costs_one_question_every_few_seconds_and_a_busy_one_none() {
    let allowed = members(&[1, 2, 3]);
    let (a, mut from_a) = start(1, &allowed);
    let (b, mut from_b) = start(2, &allowed);
    let (c, mut from_c) = start(3, &allowed);
    b.set_peers(vec![address(1, &a)]);
    up(&mut from_a, 2).await;
    up(&mut from_b, 1).await;
    // Longer than a silent peer is borne.
    let begun = SystemClock.mono_ns();
    for _ in 0..9 {
        sleep(Duration::from_secs(1)).await;
    }
    let asked = counter(&a, "pings_sent") + counter(&b, "pings_sent");
    // Each second that a busy machine takes longer is one to be quiet in, too.
    let longer = (SystemClock.mono_ns() - begun) / 1_000_000_000 - 9;
    assert!((1..=4 + longer).contains(&asked), "{asked}");
    assert!(from_a.try_recv().is_none() && from_b.try_recv().is_none());
    c.set_peers(vec![address(1, &a)]);
    up(&mut from_a, 3).await;
    up(&mut from_c, 1).await;
    b.shutdown().await;
    down(&mut from_a, 2).await;
    let before = counter(&a, "pings_sent");
    // Often enough that also on a busy machine nobody is silent for the four seconds after which it is asked.
    for _ in 0..45 {
        sleep(Duration::from_millis(200)).await;
        a.send(id(3), Bytes::from_static(b"a"));
        c.send(id(1), Bytes::from_static(b"c"));
    }
    assert_eq!(counter(&a, "pings_sent"), before);
    assert_eq!(counter(&c, "pings_sent"), 0);
    a.shutdown().await;
    c.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_key_exchange_is_post_quantum() {
    let allowed = members(&[1, 2]);
    let (a, _events) = start(1, &allowed);
    let stream = dial::connect(&tls(2), vec![tls(1).spki_sha256()], a.local_addr())
        .await
        .unwrap();
    let (_, tls) = stream.get_ref();
    assert_eq!(
        tls.negotiated_key_exchange_group().unwrap().name(),
        rustls::NamedGroup::X25519MLKEM768
    );
    assert_eq!(
        tls.protocol_version(),
        Some(rustls::ProtocolVersion::TLSv1_3)
    );
    a.shutdown().await;
}
