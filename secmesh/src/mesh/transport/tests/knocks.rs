//! Peers that are reached through a broker are met at their addresses.

use tokio::io::AsyncWriteExt as _;

use super::*;

/// A node whose messages go through a server that is not there.
fn brokered(n: u8, allowed: &Arc<AllowedPeers>) -> (TransportHandle, Events) {
    let nats = NatsConfig {
        servers: vec!["nats://127.0.0.1:9".to_owned()],
        user: None,
        password_file: None,
        token_file: None,
        ca_file: None,
        cert_file: None,
        key_file: None,
        replicas: 1,
        max_age: Duration::from_mins(1),
        max_bytes: 1 << 20,
    };
    Transport::start(TransportConfig {
        listen: V4.parse().unwrap(),
        node: id(n),
        tls: tls(n),
        mesh: MESH,
        carrier: Carrier::Nats(nats),
        allowed: Arc::clone(allowed),
        peers: Vec::new(),
        clock: Arc::new(SystemClock),
    })
    .unwrap()
}

async fn is_met(events: &mut Events, n: u8) {
    let event = event(events).await;
    assert!(
        matches!(event, TransportEvent::PeerAt { node, ip } if node == id(n) && ip.is_loopback()),
        "{event:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn who_shows_its_key_and_says_nothing_is_met_and_strangers_are_not() {
    let allowed = members(&[1, 2]);
    let (a, mut from_a) = brokered(1, &allowed);
    // A stranger, a member of whom nobody knows where it is, and a member that wants to talk.
    let pins = || vec![tls(1).spki_sha256()];
    if let Ok(mut stream) = dial::connect(&tls(9), pins(), a.local_addr()).await {
        drop(stream.shutdown().await);
    }
    counted(&a, "refused_unknown_certificate", 1).await;
    let talks = call(&tls(2), 1, &a, Method::Session, Frame::hello(&MESH)).await;
    drop(talks);
    counted(&a, "refused_other_carrier", 1).await;
    assert_eq!(counter(&a, "peers_found"), 0);
    let mut stream = dial::connect(&tls(2), pins(), a.local_addr())
        .await
        .unwrap();
    stream.shutdown().await.unwrap();
    is_met(&mut from_a, 2).await;
    assert_eq!(counter(&a, "refused_other_carrier"), 1);
    a.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_peer_that_is_up_is_looked_for_once_and_only_where_its_key_is() {
    let allowed = members(&[1, 2, 3]);
    let (a, mut from_a) = brokered(1, &allowed);
    let (b, mut from_b) = brokered(2, &allowed);
    // Node 3 says that it is where node 2 is.
    let lie = PeerAddress {
        address: b.local_addr(),
        ..address(3, &b)
    };
    a.set_peers(vec![address(2, &b), lie]);
    sleep(Duration::from_millis(1_200)).await;
    assert_eq!(counter(&a, "dial_failed") + counter(&a, "peers_found"), 0);
    for n in [2, 3] {
        a.inner.registry.slot(id(n)).connected.send_replace(true);
    }
    is_met(&mut from_a, 2).await;
    is_met(&mut from_b, 1).await;
    counted(&a, "dial_failed", 1).await;
    sleep(Duration::from_millis(1_200)).await;
    assert_eq!(counter(&a, "peers_found"), 1);
    // Back again, it is looked for again: it may have moved.
    // Down and up may come in one moment.
    for pause in [50, 0] {
        a.inner.registry.slot(id(2)).connected.send_replace(false);
        if pause > 0 {
            sleep(Duration::from_millis(pause)).await;
        }
        a.inner.registry.slot(id(2)).connected.send_replace(true);
        is_met(&mut from_a, 2).await;
    }
    // Both have gone by the same address; nobody else is anywhere.
    assert_eq!(counter(&a, "peers_found"), 3);
    a.shutdown().await;
    b.shutdown().await;
}
