//! A TCP proxy whose connections suffer what their [`Link`] does.

use std::{
    net::SocketAddr,
    path::Path,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use anyhow::Context;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{
        TcpListener, TcpStream,
        tcp::{ReadHalf, WriteHalf},
    },
    sync::watch,
    task::JoinSet,
    time::{sleep, timeout},
};
use tokio_util::task::AbortOnDropHandle;

use crate::{
    link::{Condition, Link, State},
    owner::owner,
};

/// What is passed on at once. Requests of one round trip are larger now and then, and so are torn between.
const CHUNK: usize = 16 * 1024;
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);

/// A proxy that listens until it is dropped.
pub(crate) struct Proxy {
    /// Where.
    pub(crate) address: SocketAddr,
    _accepting: AbortOnDropHandle<()>,
}

/// Links by process. Clones share them.
#[derive(Clone, Default)]
pub(crate) struct Owners(Arc<Mutex<Vec<Owned>>>);

/// A process and its way.
type Owned = (u32, Arc<Link>);

impl Owners {
    /// From now on connections of a process take a way, until it has another.
    pub(crate) fn set(&self, pid: u32, link: &Arc<Link>) {
        let mut owners = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        // Several processes may take one way. Those that have ended need none.
        owners.retain(|(known, _)| *known != pid && Path::new(&format!("/proc/{known}")).exists());
        owners.push((pid, link.clone()));
    }

    fn link(&self, peer: SocketAddr, proxy: SocketAddr) -> Option<Arc<Link>> {
        let owners = self.0.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let pids: Vec<_> = owners.iter().map(|(pid, _)| *pid).collect();
        let pid = owner(peer, proxy, &pids)?;
        owners.into_iter().find_map(|(known, link)| (known == pid).then_some(link))
    }
}

impl Proxy {
    /// A proxy whose connections all take one way.
    pub(crate) async fn of(link: Arc<Link>, target: String) -> anyhow::Result<Self> {
        Self::start("127.0.0.1:0", target, move |_, _| Some(link.clone())).await
    }

    /// A proxy whose connections take the way of the process that opens them; no other process can use it. Kafka tells
    /// every client the same address, so that one proxy serves them all.
    pub(crate) async fn by_owner(listen: &str, target: String, owners: Owners) -> anyhow::Result<Self> {
        Self::start(listen, target, move |peer, proxy| owners.link(peer, proxy)).await
    }

    async fn start(
        listen: &str,
        target: String,
        choose: impl Fn(SocketAddr, SocketAddr) -> Option<Arc<Link>> + Send + 'static,
    ) -> anyhow::Result<Self> {
        let listener =
            TcpListener::bind(listen).await.with_context(|| format!("failed to put a proxy on {listen}"))?;
        let address = listener.local_addr()?;
        let accepting = tokio::spawn(async move {
            let mut connections = JoinSet::new();
            loop {
                tokio::select! {
                    accepted = listener.accept() => {
                        if let Ok((client, peer)) = accepted
                            && let Some(link) = choose(peer, address)
                        {
                            connections.spawn(relay(client, target.clone(), link.watch()));
                        }
                    }
                    Some(_) = connections.join_next() => {}
                }
            }
        });
        Ok(Self { address, _accepting: AbortOnDropHandle::new(accepting) })
    }
}

/// How a connection ends.
#[derive(Clone, Copy, PartialEq, Eq)]
enum End {
    /// As its peers wanted it.
    Closed,
    /// By a reset in both directions.
    Reset,
    /// The client is reset; the server reads what has arrived, to its end.
    Torn,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Direction {
    Request,
    Answer,
}

async fn relay(mut client: TcpStream, target: String, link: watch::Receiver<State>) {
    let server = if link.borrow().condition == Condition::Cut {
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
            end = until_reset(link.clone()) => end,
            end = pass(from_client, to_server, Direction::Request, link.clone()) => end,
            end = pass(from_server, to_client, Direction::Answer, link) => end,
        }
    };
    if end != End::Closed {
        _ = client.set_zero_linger();
    }
    if end == End::Reset {
        _ = server.set_zero_linger();
    }
}

async fn until_reset(mut link: watch::Receiver<State>) -> End {
    let resets = link.borrow().resets;
    _ = link.wait_for(|state| state.resets > resets).await;
    End::Reset
}

async fn pass(
    mut from: ReadHalf<'_>,
    mut to: WriteHalf<'_>,
    direction: Direction,
    mut link: watch::Receiver<State>,
) -> End {
    let mut chunk = vec![0; CHUNK];
    loop {
        let length = match from.read(&mut chunk).await {
            Ok(0) => return End::Closed,
            Ok(length) => length,
            Err(_) => return End::Reset,
        };
        let condition = match link.wait_for(|state| state.condition != Condition::Stalled).await {
            Ok(state) => state.condition,
            Err(_) => return End::Reset,
        };
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

    /// A server that answers each byte with the next, and tells how many it got in all.
    async fn server() -> (String, watch::Receiver<usize>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let (got, heard) = watch::channel(0);
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let got = got.clone();
                tokio::spawn(async move {
                    let mut byte = [0];
                    while stream.read_exact(&mut byte).await.is_ok() {
                        got.send_modify(|got| *got += 1);
                        _ = stream.write_all(&[byte[0] + 1]).await;
                    }
                });
            }
        });
        (address, heard)
    }

    async fn ask(stream: &mut TcpStream, request: &[u8]) -> std::io::Result<Vec<u8>> {
        stream.write_all(request).await?;
        let mut answer = vec![0; request.len()];
        let read = timeout(Duration::from_millis(300), stream.read_exact(&mut answer)).await;
        read.map_err(|_| std::io::Error::from(ErrorKind::TimedOut))??;
        Ok(answer)
    }

    #[tokio::test]
    async fn connections_suffer_what_their_link_does() {
        let (address, mut heard) = server().await;
        let link = Link::open();
        let proxy = Proxy::of(link.clone(), address).await.unwrap();
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
        let before = *heard.borrow();
        assert!(ask(&mut connect().await, &[1]).await.is_err());
        heard.wait_for(|heard| *heard == before + 1).await.unwrap();
        link.set(Condition::Torn);
        assert!(ask(&mut connect().await, &[1; 10]).await.is_err());
        heard.wait_for(|heard| *heard == before + 6).await.unwrap();
    }

    #[tokio::test]
    async fn a_process_takes_its_own_way_and_a_stranger_none() {
        let (address, _) = server().await;
        let owners = Owners::default();
        let proxy = Proxy::by_owner("127.0.0.1:0", address, owners.clone()).await.unwrap();
        let connect = async || TcpStream::connect(proxy.address).await.unwrap();
        assert!(ask(&mut connect().await, &[1]).await.is_err());
        owners.set(std::process::id(), &Link::open());
        assert_eq!(ask(&mut connect().await, &[1]).await.unwrap(), [2]);
    }
}
