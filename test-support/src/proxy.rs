//! A TCP proxy whose connections have the condition of their [`Link`].

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{
        TcpListener, TcpStream,
        tcp::{ReadHalf, WriteHalf},
    },
    sync::watch,
    task::{JoinHandle, JoinSet},
    time::{sleep, timeout},
};

use crate::link::{Condition, Link, LinkState};

/// Bytes that are forwarded at once. The requests of one round trip are larger now and then, so they are torn in between.
const CHUNK: usize = 16 * 1024;
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);

/// A proxy; dropping it closes its port and its connections.
pub struct Proxy {
    /// The address that it listens on.
    pub address: SocketAddr,
    accepting: JoinHandle<()>,
}

impl Proxy {
    /// Listens on an address and forwards to a target without faults.
    pub async fn forward(listen: impl Into<String>, target: impl Into<String>) -> io::Result<Self> {
        Self::over(listen, target, Link::open()).await
    }

    /// Listens on an address and forwards to a target; all connections share one link.
    pub async fn over(
        listen: impl Into<String>,
        target: impl Into<String>,
        link: Arc<Link>,
    ) -> io::Result<Self> {
        Self::choosing(listen, target, move |_, _| Some(link.clone())).await
    }

    /// Listens on an address and forwards to a target. `choose` picks the link of a connection from its client's address
    /// and the proxy's; a connection without a link is closed.
    pub async fn choosing(
        listen: impl Into<String>,
        target: impl Into<String>,
        choose: impl Fn(SocketAddr, SocketAddr) -> Option<Arc<Link>> + Send + 'static,
    ) -> io::Result<Self> {
        let listener = TcpListener::bind(listen.into()).await?;
        let (address, target) = (listener.local_addr()?, target.into());
        let accepting = tokio::spawn(async move {
            let mut connections = JoinSet::new();
            loop {
                tokio::select! {
                    accepted = listener.accept() => {
                        if let Ok((client, peer)) = accepted
                            && let Some(link) = choose(peer, address)
                        {
                            connections.spawn(relay(client, target.clone(), link));
                        }
                    }
                    Some(_) = connections.join_next() => {}
                }
            }
        });
        Ok(Self { address, accepting })
    }

    /// Closes the port and all connections; returns once new connections are refused.
    pub async fn stop(mut self) {
        self.accepting.abort();
        _ = (&mut self.accepting).await;
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

/// How a connection ends.
#[derive(Clone, Copy, PartialEq, Eq)]
enum End {
    /// Closed by a peer.
    Closed,
    /// Reset in both directions.
    Reset,
    /// Reset for the client; the server still reads all bytes that arrived.
    Torn,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Direction {
    Request,
    Answer,
}

async fn relay(mut client: TcpStream, target: String, link: Arc<Link>) {
    let server = if link.watch().borrow().condition == Condition::Cut {
        None
    } else {
        timeout(CONNECT_TIMEOUT, TcpStream::connect(target)).await.ok().and_then(Result::ok)
    };
    let Some(mut server) = server else {
        _ = client.set_zero_linger();
        return;
    };
    _ = (client.set_nodelay(true), server.set_nodelay(true));
    let end = {
        let (from_client, to_client) = client.split();
        let (from_server, to_server) = server.split();
        tokio::select! {
            end = until_reset(link.watch()) => end,
            end = pass(from_client, to_server, Direction::Request, &link) => end,
            end = pass(from_server, to_client, Direction::Answer, &link) => end,
        }
    };
    if end != End::Closed {
        _ = client.set_zero_linger();
    }
    if end == End::Reset {
        _ = server.set_zero_linger();
    }
}

async fn until_reset(mut link: watch::Receiver<LinkState>) -> End {
    let resets = link.borrow().resets;
    _ = link.wait_for(|state| state.resets > resets).await;
    End::Reset
}

async fn pass(mut from: ReadHalf<'_>, mut to: WriteHalf<'_>, direction: Direction, link: &Link) -> End {
    let mut state = link.watch();
    let mut chunk = vec![0; CHUNK];
    loop {
        let length = match from.read(&mut chunk).await {
            Ok(0) => return End::Closed,
            Ok(length) => length,
            Err(_) => return End::Reset,
        };
        let condition = match state.wait_for(|state| state.condition != Condition::Stalled).await {
            Ok(state) => state.condition,
            Err(_) => return End::Reset,
        };
        if direction == Direction::Answer && link.loses_answer() {
            return End::Reset;
        }
        let (arriving, end) = match (condition, direction) {
            (Condition::AnswersLost, Direction::Answer) | (Condition::Cut, _) => return End::Reset,
            (Condition::Torn, Direction::Request) => (length / 2, Some(End::Torn)),
            (Condition::Slow(latency), _) => {
                sleep(latency).await;
                (length, None)
            }
            _ => (length, None),
        };
        if to.write_all(&chunk[..arriving]).await.is_err() {
            return End::Reset;
        }
        if let Some(end) = end {
            return end;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::ErrorKind;

    use super::*;

    /// A server that answers each byte with its successor; also returns how many bytes it received.
    async fn server() -> (String, watch::Receiver<usize>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let (count, received) = watch::channel(0);
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let count = count.clone();
                tokio::spawn(async move {
                    let mut byte = [0];
                    while stream.read_exact(&mut byte).await.is_ok() {
                        count.send_modify(|count| *count += 1);
                        _ = stream.write_all(&[byte[0] + 1]).await;
                    }
                });
            }
        });
        (address, received)
    }

    async fn ask(stream: &mut TcpStream, request: &[u8]) -> std::io::Result<Vec<u8>> {
        stream.write_all(request).await?;
        let mut answer = vec![0; request.len()];
        let read = timeout(Duration::from_millis(300), stream.read_exact(&mut answer)).await;
        read.map_err(|_| std::io::Error::from(ErrorKind::TimedOut))??;
        Ok(answer)
    }

    #[tokio::test]
    async fn each_condition_shows_in_connections() {
        let (address, mut received) = server().await;
        let link = Link::open();
        let proxy = Proxy::over("127.0.0.1:0", address, link.clone()).await.unwrap();
        let connect = async || TcpStream::connect(proxy.address).await.unwrap();

        let mut stream = connect().await;
        assert_eq!(ask(&mut stream, &[1, 2]).await.unwrap(), [2, 3]);
        link.set(Condition::Stalled);
        assert_eq!(ask(&mut stream, &[1]).await.unwrap_err().kind(), ErrorKind::TimedOut);
        link.set(Condition::Open);
        assert_eq!(stream.read_u8().await.unwrap(), 2);

        link.reset();
        assert_eq!(ask(&mut stream, &[1]).await.unwrap_err().kind(), ErrorKind::ConnectionReset);
        stream = connect().await;
        link.set(Condition::Cut);
        assert!(ask(&mut stream, &[1]).await.is_err());
        assert!(ask(&mut connect().await, &[1]).await.is_err());

        link.set(Condition::AnswersLost);
        let before = *received.borrow();
        assert!(ask(&mut connect().await, &[1]).await.is_err());
        received.wait_for(|received| *received == before + 1).await.unwrap();
        link.set(Condition::Torn);
        assert!(ask(&mut connect().await, &[1; 10]).await.is_err());
        received.wait_for(|received| *received == before + 6).await.unwrap();
    }

    #[tokio::test]
    async fn one_answer_is_lost_after_others() {
        let (address, mut received) = server().await;
        let link = Link::open();
        let proxy = Proxy::over("127.0.0.1:0", address, link.clone()).await.unwrap();
        let mut stream = TcpStream::connect(proxy.address).await.unwrap();
        link.lose_answer_after(1);
        assert_eq!(ask(&mut stream, &[1]).await.unwrap(), [2]);
        assert!(!link.has_lost_answer());
        assert_eq!(ask(&mut stream, &[2]).await.unwrap_err().kind(), ErrorKind::ConnectionReset);
        assert!(link.has_lost_answer());
        received.wait_for(|received| *received == 2).await.unwrap();
        assert_eq!(ask(&mut TcpStream::connect(proxy.address).await.unwrap(), &[3]).await.unwrap(), [4]);
    }

    #[tokio::test]
    async fn stopped_proxy_refuses_connections_until_restarted() {
        let (address, _) = server().await;
        let proxy = Proxy::forward("127.0.0.1:0", &*address).await.unwrap();
        let listen = proxy.address;
        let mut stream = TcpStream::connect(listen).await.unwrap();
        assert_eq!(ask(&mut stream, &[1]).await.unwrap(), [2]);
        proxy.stop().await;
        assert!(ask(&mut stream, &[1]).await.is_err());
        assert_eq!(TcpStream::connect(listen).await.unwrap_err().kind(), ErrorKind::ConnectionRefused);

        let _proxy = Proxy::forward(listen.to_string(), address).await.unwrap();
        let mut stream = TcpStream::connect(listen).await.unwrap();
        assert_eq!(ask(&mut stream, &[1]).await.unwrap(), [2]);
    }

    #[tokio::test]
    async fn connection_without_a_link_is_closed() {
        let (address, _) = server().await;
        let proxy = Proxy::choosing("127.0.0.1:0", address, |_, _| None).await.unwrap();
        assert!(ask(&mut TcpStream::connect(proxy.address).await.unwrap(), &[1]).await.is_err());
    }
}
