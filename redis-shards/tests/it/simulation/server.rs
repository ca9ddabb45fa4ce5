//! The nodes of the model as servers that speak RESP over loopback sockets.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard},
};

use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::{TcpListener, TcpStream, tcp::OwnedReadHalf},
    sync::watch,
    task::JoinSet,
};

use super::model::{Model, Response, SHARDS};

/// A running simulated cluster. Its servers stop when it is dropped.
pub(super) struct Server {
    shared: Arc<Shared>,
    _tasks: JoinSet<()>,
}

struct Shared {
    model: Mutex<Model>,
    /// The incarnation of each node.
    incarnations: Vec<watch::Sender<u64>>,
}

impl Server {
    pub(super) async fn start(seed: u64) -> Self {
        let mut listeners = BTreeMap::new();
        for _ in 0..2 * SHARDS {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            listeners.insert(listener.local_addr().unwrap().port(), listener);
        }
        // In ascending order: the client orders nodes by port, so the order of nodes repeats with the seed.
        let ports: Vec<_> = listeners.keys().copied().collect();
        let shared = Arc::new(Shared {
            model: Mutex::new(Model::new(seed, &ports)),
            incarnations: ports.iter().map(|_| watch::Sender::new(0)).collect(),
        });
        let mut tasks = JoinSet::new();
        for (node, listener) in listeners.into_values().enumerate() {
            tasks.spawn(accept(node, listener, Arc::clone(&shared)));
        }
        Self { shared, _tasks: tasks }
    }

    /// The URL of the cluster, with one primary and one replica as seed nodes.
    pub(super) fn url(&self) -> String {
        let model = self.model();
        format!(
            "redis-cluster://127.0.0.1:{},127.0.0.1:{}/",
            model.nodes[0].port,
            model.nodes[SHARDS + 1].port
        )
    }

    pub(super) fn model(&self) -> MutexGuard<'_, Model> {
        self.shared.model.lock().unwrap()
    }

    /// Changes the topology at random, and breaks the connections that this breaks.
    pub(super) fn change_topology(&self) {
        self.model().change_topology();
        self.shared.break_connections();
    }

    /// Stops a primary that has no successor.
    pub(super) fn stop_for_good(&self, node: usize) {
        self.model().stop_for_good(node);
        self.shared.break_connections();
    }

    pub(super) fn heal(&self) {
        self.model().heal();
    }
}

impl Shared {
    fn handle(&self, node: usize, is_asking: &mut bool, command: &[String]) -> Response {
        let response = self.model.lock().unwrap().handle(node, is_asking, command);
        self.break_connections();
        response
    }

    fn break_connections(&self) {
        let model = self.model.lock().unwrap();
        for (node, incarnation) in model.nodes.iter().zip(&self.incarnations) {
            incarnation.send_if_modified(|current| std::mem::replace(current, node.incarnation) != *current);
        }
    }
}

async fn accept(node: usize, listener: TcpListener, shared: Arc<Shared>) {
    let mut connections = JoinSet::new();
    loop {
        let (stream, _) = listener.accept().await.unwrap();
        // A node that is down breaks connections at once.
        if shared.model.lock().unwrap().nodes[node].is_up {
            connections.spawn(serve(node, stream, Arc::clone(&shared)));
        }
    }
}

async fn serve(node: usize, stream: TcpStream, shared: Arc<Shared>) {
    stream.set_nodelay(true).unwrap();
    let mut incarnation = shared.incarnations[node].subscribe();
    let (reader, mut writer) = stream.into_split();
    let mut reader = BufReader::new(reader);
    let mut is_asking = false;
    loop {
        let command = tokio::select! {
            biased;
            _ = incarnation.changed() => return,
            command = read_command(&mut reader) => command,
        };
        let Ok(command) = command else { return };
        match shared.handle(node, &mut is_asking, &command) {
            Response::Reply(reply) if writer.write_all(&reply).await.is_ok() => {}
            _ => return,
        }
        // Lets other connections interleave with a pipeline.
        tokio::task::yield_now().await;
    }
}

/// Reads an array of bulk strings.
async fn read_command(reader: &mut BufReader<OwnedReadHalf>) -> std::io::Result<Vec<String>> {
    let count = read_length(reader, '*').await?;
    let mut words = Vec::with_capacity(count);
    for _ in 0..count {
        let mut word = vec![0; read_length(reader, '$').await? + 2];
        reader.read_exact(&mut word).await?;
        word.truncate(word.len() - 2);
        words.push(String::from_utf8(word).map_err(std::io::Error::other)?);
    }
    Ok(words)
}

async fn read_length(reader: &mut BufReader<OwnedReadHalf>, kind: char) -> std::io::Result<usize> {
    let mut line = String::new();
    reader.read_line(&mut line).await?;
    let length = line.trim_end().strip_prefix(kind).and_then(|length| length.parse().ok());
    length.ok_or_else(|| std::io::Error::other("not a command"))
}
