//! A NATS client of a few lines, for somebody on the bus who is not supposed to be there.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};

/// A message as the server delivers it.
#[derive(Debug, Clone)]
pub struct Overheard {
    /// Where it was published.
    pub subject: String,
    /// What was published.
    pub payload: Vec<u8>,
}

/// A connection to a NATS server without any rights but those that everybody has there.
#[derive(Debug)]
pub struct Intruder {
    stream: BufReader<TcpStream>,
}

impl Intruder {
    /// Connects and subscribes to `subject`.
    ///
    /// # Errors
    /// When the server does not answer like one.
    pub fn connect(address: SocketAddr, subject: &str) -> Result<Self> {
        let stream = TcpStream::connect_timeout(&address, Duration::from_secs(3))
            .context("cannot connect to nats-server")?;
        stream.set_read_timeout(Some(Duration::from_secs(3)))?;
        let mut intruder = Self {
            stream: BufReader::new(stream),
        };
        intruder.line()?;
        intruder
            .write(format!("CONNECT {{\"verbose\":false}}\r\nSUB {subject} 1\r\n").as_bytes())?;
        intruder.flush()?;
        Ok(intruder)
    }

    fn line(&mut self) -> Result<String> {
        let mut line = String::new();
        if self
            .stream
            .read_line(&mut line)
            .context("nats-server is silent")?
            == 0
        {
            bail!("nats-server closed the connection");
        }
        Ok(line.trim_end().to_owned())
    }

    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.stream
            .get_mut()
            .write_all(bytes)
            .context("cannot write to nats-server")
    }

    /// The next message on the subject.
    ///
    /// # Errors
    /// When none comes within three seconds.
    pub fn listen(&mut self) -> Result<Overheard> {
        loop {
            let line = self.line()?;
            let words: Vec<&str> = line.split_whitespace().collect();
            match words.as_slice() {
                ["PING"] => self.write(b"PONG\r\n")?,
                ["MSG", subject, .., length] => {
                    let length: usize = length.parse().context("the length of a message")?;
                    let mut payload = vec![0; length + 2];
                    self.stream.read_exact(&mut payload)?;
                    payload.truncate(length);
                    return Ok(Overheard {
                        subject: (*subject).to_owned(),
                        payload,
                    });
                }
                ["-ERR", ..] => bail!("nats-server: {line}"),
                _ => {}
            }
        }
    }

    /// Publishes bytes.
    ///
    /// # Errors
    /// When the server takes nothing.
    pub fn publish(&mut self, subject: &str, payload: &[u8]) -> Result<()> {
        let mut bytes = format!("PUB {subject} {}\r\n", payload.len()).into_bytes();
        bytes.extend_from_slice(payload);
        bytes.extend_from_slice(b"\r\n");
        self.write(&bytes)
    }

    /// Asks the server's `JetStream` something: `api` is the subject behind `$JS.API.`. The answer comes on the subject
    /// that was subscribed to, which has to be one without wildcards.
    ///
    /// # Errors
    /// When no answer comes within three seconds, it is no JSON, or says that there is an error.
    pub fn ask(
        &mut self,
        inbox: &str,
        api: &str,
        question: &serde_json::Value,
    ) -> Result<serde_json::Value> {
        let question = question.to_string();
        let ask = format!(
            "PUB $JS.API.{api} {inbox} {}\r\n{question}\r\n",
            question.len()
        );
        self.write(ask.as_bytes())?;
        let heard = self.listen()?;
        let answer: serde_json::Value =
            serde_json::from_slice(&heard.payload).with_context(|| format!("{api}: no JSON"))?;
        if let Some(error) = answer.get("error") {
            bail!("{api}: {error}");
        }
        Ok(answer)
    }

    /// Waits until the server has taken all that was published. Whoever leaves with answers unread resets the
    /// connection, and what the server had not read by then is lost.
    ///
    /// # Errors
    /// When it does not say so within three seconds.
    pub fn flush(&mut self) -> Result<()> {
        self.write(b"PING\r\n")?;
        loop {
            let line = self.line()?;
            let words: Vec<&str> = line.split_whitespace().collect();
            match words.as_slice() {
                ["PONG"] => return Ok(()),
                ["PING"] => self.write(b"PONG\r\n")?,
                ["MSG", .., length] => {
                    let length: usize = length.parse().context("the length of a message")?;
                    self.stream.read_exact(&mut vec![0; length + 2])?;
                }
                ["-ERR", ..] => bail!("nats-server: {line}"),
                _ => {}
            }
        }
    }
}
