//! A member that connects again and again.

use super::*;

/// Whether node 2 is taken, if it connects now; it leaves at once.
async fn is_welcome(at: &TransportHandle) -> bool {
    match call(&tls(2), 1, at, Method::Session, Frame::hello(&MESH)).await {
        Ok(mut link) => welcomed(&mut link).await.is_ok(),
        Err(_) => false,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_that_connects_again_and_again_has_to_wait() {
    let (a, mut events) = start(1, &members(&[1, 2]));
    let taking = tokio::spawn(async move { while events.recv().await.is_some() {} });
    let (mut ups, begun) = (0, SystemClock.mono_ns());
    // On an idle machine that is the 17th. On a busy one some more are earned meanwhile.
    for _ in 0..200 {
        ups += u64::from(is_welcome(&a).await);
        if counter(&a, "refused_reconnecting") > 0 {
            break;
        }
    }
    let seconds = (SystemClock.mono_ns() - begun).div_ceil(1_000_000_000);
    let refused = counter(&a, "refused_reconnecting");
    assert!(refused > 0, "{ups} connections were taken in {seconds} s");
    assert!(
        ups >= 16 && ups <= 16 + seconds,
        "{ups} connections were taken in {seconds} s"
    );
    assert_eq!(counter(&a, "connections_up"), ups);
    // A moment later it is welcome again.
    for _ in 0..100 {
        if is_welcome(&a).await {
            break;
        }
        sleep(Duration::from_millis(100)).await;
    }
    assert!(counter(&a, "connections_up") > ups);
    a.shutdown().await;
    drop(a);
    taking.await.unwrap();
}

/// Who sends more than is taken makes its next connections wait: of those only the last stays.
#[tokio::test(flavor = "multi_thread")]
async fn of_a_members_connections_one_waits_and_no_more() {
    let (a, mut events) = start(1, &members(&[1, 2]));
    let mut first = session(2, 1, &a).await;
    welcomed(&mut first).await.unwrap();
    // Nobody takes events: its queue is full, and the end of this connection cannot be told.
    for _ in 0..40 {
        let frame = Frame::new(frame::Kind::Message, Bytes::from_static(b"x"));
        let written = timeout(Duration::from_secs(5), first.writer.write(frame)).await;
        written.expect("buffers for that").unwrap();
    }
    counted(&a, "messages_received", 32).await;
    let mut second = session(2, 1, &a).await;
    let told = timeout(Duration::from_millis(300), welcomed(&mut second)).await;
    assert!(told.is_err(), "it holds the turn");
    let mut waiting = Vec::new();
    for others in 1..=4 {
        waiting.push(session(2, 1, &a).await);
        // It waits as soon as the one before it is given up.
        counted(&a, "duplicate_connections", others).await;
    }
    let mut last = waiting.pop().expect("four");
    for link in &mut waiting {
        let closed = timeout(PATIENCE, welcomed(link)).await;
        closed
            .expect("it is closed, and does not wait on")
            .expect_err("a newer one took its place");
    }
    assert_eq!(counter(&a, "duplicate_connections"), 3 + 1);
    // As soon as somebody takes the events, the last one is in.
    let taking = tokio::spawn(async move { while events.recv().await.is_some() {} });
    timeout(PATIENCE, welcomed(&mut last))
        .await
        .expect("in time")
        .unwrap();
    a.shutdown().await;
    drop(a);
    taking.await.unwrap();
}
