//! What one connection can make this node hold, and whom it can be taken for.

use super::*;
use crate::mesh::transport::frame::Kind;

/// Small messages of one peer that wait until it is read no further.
const HELD: usize = 32;
/// Frames of 64 KiB that another end can be rid of while this one takes nothing: what fits the window of HTTP/2, and
/// on the sending side its buffer, the frames before it, and two in between.
const UNREAD: usize = 4 + 2 + 16 + 4;

#[tokio::test(flavor = "multi_thread")]
async fn what_nobody_reads_is_not_taken() {
    let (a, mut events) = start(1, &members(&[1, 2]));
    let mut link = session(2, 1, &a).await;
    welcomed(&mut link).await.unwrap();
    up(&mut events, 2).await;
    // From here on nobody asks for events. They are few and small.
    for _ in 0..HELD + 64 {
        let small = Frame::new(Kind::Message, Bytes::from_static(b"x"));
        link.writer.write(small).await.unwrap();
    }
    let waiting = |a: &TransportHandle| counter(a, "messages_received");
    counted(&a, "messages_received", HELD as u64).await;
    let mut written = 0;
    while written <= 4 * UNREAD {
        let large = Frame::new(Kind::Message, vec![7; MAX_MESSAGE]);
        match timeout(Duration::from_secs(1), link.writer.write(large)).await {
            Ok(Ok(())) => written += 1,
            Ok(Err(error)) => panic!("it ended: {error}"),
            Err(_) => break,
        }
    }
    assert!(
        (1..=UNREAD).contains(&written),
        "{written} frames of 64 KiB were taken that nobody reads"
    );
    assert!(waiting(&a) <= HELD as u64 + 2);
    // Nothing is lost for it.
    for _ in 0..HELD + 64 {
        assert_eq!(message(&mut events, 2).await, "x");
    }
    for _ in 0..written {
        assert_eq!(message(&mut events, 2).await.len(), MAX_MESSAGE);
    }
    a.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_that_answers_in_the_place_of_another_is_nobody() {
    let allowed = members(&[1, 2, 3]);
    let (a, mut from_a) = start(1, &allowed);
    let (c, mut from_c) = start(3, &allowed);
    // Where node 2 should be, node 3 answers, with its own key.
    a.set_peers(vec![PeerAddress {
        node: id(2),
        spki_sha256: tls(2).spki_sha256(),
        address: c.local_addr(),
    }]);
    counted(&a, "dial_failed", 2).await;
    assert!(from_a.try_recv().is_none(), "somebody came up");
    assert!(from_c.try_recv().is_none(), "somebody came up");
    assert_eq!((counter(&a, "connections_up"), a.connected().len()), (0, 0));
    a.shutdown().await;
    c.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn messages_are_those_of_the_connections_key_and_of_nobody_else() {
    let allowed = members(&[1, 2, 3]);
    let (a, mut events) = start(1, &allowed);
    let mut links = Vec::new();
    for n in [2, 3] {
        let mut link = session(n, 1, &a).await;
        welcomed(&mut link).await.unwrap();
        up(&mut events, n).await;
        links.push((n, link));
    }
    for (n, link) in &links {
        let body = vec![*n; 3];
        let frame = Frame::new(Kind::Message, body.clone());
        link.writer.write(frame).await.unwrap();
        assert_eq!(message(&mut events, *n).await, body);
    }
    // And a key that is taken away ends its own connection only.
    allowed.remove(&tls(2).spki_sha256());
    down(&mut events, 2).await;
    assert_eq!(a.connected(), [id(3)]);
    a.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn all_ends_also_while_nobody_takes_what_peers_have_sent() {
    let (a, mut events) = start(1, &members(&[1, 2]));
    let mut link = session(2, 1, &a).await;
    welcomed(&mut link).await.unwrap();
    up(&mut events, 2).await;
    let large = || Frame::new(Kind::Message, vec![7; MAX_MESSAGE]);
    while let Ok(taken) = timeout(Duration::from_secs(1), link.writer.write(large())).await {
        taken.unwrap();
    }
    // The session waits for room now, and so would the news that it has ended.
    timeout(PATIENCE, a.shutdown())
        .await
        .expect("it waits for a receiver that takes nothing");
    drop(events);
}
