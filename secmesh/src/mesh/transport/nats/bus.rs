//! The NATS client: the stream of the mesh, this node's durable consumer, and what comes through it.

use std::sync::{Arc, PoisonError};
use std::time::Duration;

use async_nats::jetstream::consumer::{AckPolicy, DeliverPolicy, pull};
use async_nats::jetstream::stream::{Config, DiscardPolicy, RetentionPolicy, StorageType};
use async_nats::jetstream::{self, Context};
use async_nats::{Client, ClientError, Event, ServerError, Subject};
use bytes::Bytes;
use tokio::sync::{Notify, mpsc};
use tokio::time::{sleep, timeout};
use tokio_stream::StreamExt as _;

use crate::mesh::envelope::MAX_ENVELOPE;
use crate::mesh::ids::{MeshId, NodeId};
use crate::mesh::transport::counters::count;
use crate::mesh::transport::{Inner, NOWHERE, NatsConfig};

/// Envelopes between the receiving task and the one that judges them.
pub(super) const ARRIVED: usize = 256;
const BATCH: usize = 128;
/// A server that says nothing for two of these is asked anew.
const BEAT: Duration = Duration::from_secs(1);
const EXPIRES: Duration = Duration::from_secs(30);
/// A consumer that nobody asks for so long is a node that is gone.
const ABANDONED: Duration = Duration::from_hours(1);
const PAUSE: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(5));
/// A server that takes nothing for so long is as good as gone.
const PUBLISH: Duration = Duration::from_secs(1);

/// Where what `from` sends to `to` goes.
pub(super) fn subject(mesh: &MeshId, to: &NodeId, from: &NodeId) -> Subject {
    format!("secmesh.{mesh}.{to}.{from}").into()
}

/// The name of the mesh's stream.
pub(super) fn stream_name(mesh: &MeshId) -> String {
    let mesh: String = mesh.to_string().chars().take(32).collect();
    format!("secmesh-{mesh}")
}

fn stream_config(mesh: &MeshId, config: &NatsConfig) -> Config {
    Config {
        name: stream_name(mesh),
        description: Some("Signed messages between the nodes of a secmesh".to_owned()),
        subjects: vec![format!("secmesh.{mesh}.>")],
        retention: RetentionPolicy::Limits,
        discard: DiscardPolicy::Old,
        storage: StorageType::File,
        max_age: config.max_age,
        max_bytes: i64::try_from(config.max_bytes).unwrap_or(i64::MAX),
        max_message_size: i32::try_from(MAX_ENVELOPE).unwrap_or(i32::MAX),
        num_replicas: config.replicas,
        ..Config::default()
    }
}

fn consumer_config(mesh: &MeshId, node: &NodeId) -> pull::Config {
    pull::Config {
        durable_name: Some(consumer_name(node)),
        description: Some("One node of a secmesh".to_owned()),
        filter_subject: format!("secmesh.{mesh}.{node}.*"),
        // What was there before this node is of no session it could have.
        deliver_policy: DeliverPolicy::New,
        // Nothing is to come again: it would be later than what came after it, and refused. So acknowledgements, one
        // message for each, would say nothing; how much comes at once is what was asked for ([`BATCH`]).
        ack_policy: AckPolicy::None,
        max_deliver: 1,
        inactive_threshold: ABANDONED,
        ..pull::Config::default()
    }
}

fn consumer_name(node: &NodeId) -> String {
    format!("node-{node}")
}

/// The connection to the servers.
#[derive(Clone)]
pub(super) struct Bus {
    client: Client,
    mesh: MeshId,
    node: NodeId,
    connected: Arc<Notify>,
}

impl Bus {
    /// Begins to connect; what fails is tried again for ever.
    pub(super) async fn connect(
        inner: &Arc<Inner>,
        config: &NatsConfig,
        options: async_nats::ConnectOptions,
    ) -> Result<Self, async_nats::ConnectError> {
        let connected = Arc::new(Notify::new());
        let (wake, told) = (Arc::clone(&connected), Arc::clone(inner));
        let options = options.event_callback(move |event| {
            notice(&told, &event);
            if event == Event::Connected {
                wake.notify_one();
            }
            std::future::ready(())
        });
        let client = options.connect(config.servers.as_slice()).await?;
        Ok(Self {
            client,
            mesh: inner.mesh,
            node: inner.node,
            connected,
        })
    }

    /// Whether there is a connection now.
    pub(super) fn is_connected(&self) -> bool {
        self.client.connection_state() == async_nats::connection::State::Connected
    }

    /// Gives bytes for a node to the server. No answer is waited for: what is lost shows as a missing number.
    pub(super) async fn publish(&self, to: &NodeId, bytes: Vec<u8>) -> bool {
        let subject = subject(&self.mesh, to, &self.node);
        let publish = self.client.publish(subject, bytes.into());
        matches!(timeout(PUBLISH, publish).await, Ok(Ok(())))
    }

    /// Waits until what was published has left, for a moment.
    pub(super) async fn flush(&self) {
        // The server may be gone; then there is nobody to wait for.
        let _ = timeout(Duration::from_millis(200), self.client.flush()).await;
    }

    /// Takes this node's consumer from the server: what would wait there is of no session that this node will have.
    pub(super) async fn forget(&self) {
        let context: Context = jetstream::new(self.client.clone());
        let (name, stream) = (consumer_name(&self.node), stream_name(&self.mesh));
        // One that stays goes by itself, after [`ABANDONED`].
        let _ = context.delete_consumer_from_stream(name, stream).await;
    }

    /// Keeps the consumer and hands on what comes, until `arrived` is closed.
    pub(super) async fn receive(
        self,
        inner: Arc<Inner>,
        config: NatsConfig,
        arrived: mpsc::Sender<Bytes>,
    ) {
        let mut pause = PAUSE.0;
        while !arrived.is_closed() {
            let received = tokio::select! {
                // A server that answers nothing does not hold up a stop.
                () = arrived.closed() => return,
                received = self.receive_once(&config, &arrived, &mut pause) => received,
            };
            if let Err(error) = received {
                count(&inner.counters.nats_receiving_failed);
                if let Some(held_back) = inner.log.allow((NOWHERE, "receive")) {
                    tracing::warn!(%error, held_back, "cannot receive from NATS; is JetStream enabled there, and may this user make streams and consumers?");
                }
            }
            // A connection that came back is used at once.
            tokio::select! {
                () = sleep(pause) => {}
                () = self.connected.notified() => {}
                () = arrived.closed() => return,
            }
            pause = pause.saturating_mul(2).min(PAUSE.1);
        }
    }

    async fn receive_once(
        &self,
        config: &NatsConfig,
        arrived: &mpsc::Sender<Bytes>,
        pause: &mut Duration,
    ) -> Result<(), async_nats::Error> {
        let context: Context = jetstream::new(self.client.clone());
        let stream = context
            .get_or_create_stream(stream_config(&self.mesh, config))
            .await?;
        let (name, wanted) = (
            consumer_name(&self.node),
            consumer_config(&self.mesh, &self.node),
        );
        let mut consumer = stream.get_or_create_consumer(&name, wanted.clone()).await?;
        if consumer.cached_info().config.ack_policy != wanted.ack_policy {
            // Of an agent of before, which acknowledged. A server changes that of no consumer.
            stream.delete_consumer(&name).await?;
            consumer = stream.create_consumer(wanted).await?;
        }
        let mut messages = consumer
            .stream()
            .max_messages_per_batch(BATCH)
            .heartbeat(BEAT)
            .expires(EXPIRES)
            .messages()
            .await?;
        *pause = PAUSE.0;
        loop {
            let message = tokio::select! {
                message = messages.next() => message,
                () = arrived.closed() => return Ok(()),
            };
            let Some(message) = message.transpose()? else {
                return Ok(());
            };
            if arrived.send(message.payload.clone()).await.is_err() {
                return Ok(());
            }
        }
    }
}

const LOST: &str = "the connection was lost; trying again";

/// Why there is no connection, with what to do about it; none for what says nothing of that. Never what the server
/// or the settings say word for word: secrets do not get into logs.
fn trouble(event: &Event) -> Option<(&'static str, &'static str)> {
    let text = match event {
        Event::ServerError(ServerError::AuthorizationViolation) => return Some(REFUSED),
        Event::ClientError(ClientError::Other(text)) => text,
        _ => return None,
    };
    match text.as_str() {
        // As `ConnectErrorKind` writes it.
        "authorization violation" => Some(REFUSED),
        "DNS error" => Some((
            "nats-dns",
            "no address for a server's name; correct [mesh.nats] servers or the resolver; trying again",
        )),
        // A handshake that fails is an "IO error" too; more is not told.
        "timed out" | "IO error" | "TLS error" => Some((
            "nats-away",
            "no server of [mesh.nats] servers answers, or TLS with it fails; is it running, does a firewall let this \
             node through, does its certificate follow from ca_file and name the host in servers, does it want TLS or \
             a certificate (cert_file) where none is set; trying again",
        )),
        _ => None,
    }
}

const REFUSED: (&str, &str) = (
    "nats-refused",
    "the server refuses this node's user and password, or token; correct [mesh.nats] user and password_file, or \
     token_file, or the server's users, and restart this agent; trying again meanwhile",
);

fn set_trouble(inner: &Inner, why: Option<&str>) {
    let mut trouble = inner.trouble.lock().unwrap_or_else(PoisonError::into_inner);
    *trouble = why.map(str::to_owned);
}

fn notice(inner: &Inner, event: &Event) {
    match event {
        Event::Connected => {
            count(&inner.counters.nats_connected);
            set_trouble(inner, None);
            tracing::info!("connected to NATS");
        }
        Event::Disconnected => {
            count(&inner.counters.nats_disconnected);
            set_trouble(inner, Some(LOST));
            tracing::warn!("lost the connection to NATS; trying again");
        }
        other => {
            if let Some((key, why)) = trouble(other) {
                set_trouble(inner, Some(why));
                count(&inner.counters.nats_connect_failed);
                if let Some(held_back) = inner.log.allow((NOWHERE, key)) {
                    tracing::error!(held_back, "no connection to NATS: {why}");
                }
                return;
            }
            if let Some(held_back) = inner.log.allow((NOWHERE, "nats")) {
                tracing::warn!(event = %other, held_back, "NATS");
            }
        }
    }
}
