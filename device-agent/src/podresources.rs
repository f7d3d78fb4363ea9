//! The kubelet's PodResources API over its Unix socket: a client that polls, and a fake server.
//!
//! ```text
//! /var/lib/kubelet/pod-resources/kubelet.sock --List, GetAllocatableResources--> poll() --watch<KubeletState>--> node loop
//! ```
//! The kubelet limits all clients together to 100 requests per second (burst 10) and refreshes its
//! device table at each List, so the agent asks two questions every few seconds and no more.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use http::Uri;
use hyper_util::rt::TokioIo;
use muster_proto::podresources::pod_resources_lister_client::PodResourcesListerClient;
use muster_proto::podresources::pod_resources_lister_server::{
    PodResourcesLister, PodResourcesListerServer,
};
use muster_proto::podresources::{
    AllocatableResourcesRequest, AllocatableResourcesResponse, GetPodResourcesRequest,
    GetPodResourcesResponse, ListPodResourcesRequest, ListPodResourcesResponse,
};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_stream::wrappers::UnixListenerStream;
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Response, Status};

use crate::kubelet::KubeletState;

/// Where the kubelet listens. Mount the directory: the socket is replaced when the kubelet restarts.
pub const DEFAULT_SOCKET: &str = "/var/lib/kubelet/pod-resources/kubelet.sock";
/// Time between two questions.
pub const POLL_INTERVAL: Duration = Duration::from_secs(5);
/// Time for an answer.
const CALL_TIMEOUT: Duration = Duration::from_secs(5);
/// Largest answer, bytes: a kubelet with 250 pods sends some hundred KiB.
const ANSWER_BYTES_MAX: usize = 16 << 20;

/// Why the kubelet could not be asked.
#[derive(Debug, thiserror::Error)]
pub enum PodResourcesError {
    /// Nobody listens.
    #[error("cannot connect to the kubelet at {path}: {source}")]
    Connect {
        /// Socket.
        path: String,
        /// Cause.
        source: tonic::transport::Error,
    },
    /// The kubelet refused or failed.
    #[error("kubelet at {path}: {code}: {message}")]
    Call {
        /// Socket.
        path: String,
        /// gRPC code.
        code: tonic::Code,
        /// What it says.
        message: String,
    },
}

/// Asks the kubelet once.
pub async fn ask(socket: &Path) -> Result<KubeletState, PodResourcesError> {
    let path = socket.display().to_string();
    let channel =
        connect(socket.to_owned())
            .await
            .map_err(|source| PodResourcesError::Connect {
                path: path.clone(),
                source,
            })?;
    let fail = |status: Status| PodResourcesError::Call {
        path: path.clone(),
        code: status.code(),
        message: status.message().to_owned(),
    };
    let mut client =
        PodResourcesListerClient::new(channel).max_decoding_message_size(ANSWER_BYTES_MAX);
    let pods = client
        .list(ListPodResourcesRequest {})
        .await
        .map_err(fail)?;
    let allocatable = client
        .get_allocatable_resources(AllocatableResourcesRequest {})
        .await
        .map_err(fail)?;
    Ok(KubeletState::from_answers(
        pods.into_inner(),
        allocatable.into_inner(),
    ))
}

async fn connect(socket: PathBuf) -> Result<Channel, tonic::transport::Error> {
    let open = tower::service_fn(move |_: Uri| {
        let socket = socket.clone();
        async move { UnixStream::connect(socket).await.map(TokioIo::new) }
    });
    Endpoint::from_static("http://kubelet.local")
        .timeout(CALL_TIMEOUT)
        .connect_timeout(CALL_TIMEOUT)
        .connect_with_connector(open)
        .await
}

/// Asks again and again and publishes the answer, until nobody listens. After a failure the last answer stays, marked
/// as not known: it may name pods that have ended, but to forget it would make free what is in use.
pub async fn poll(socket: PathBuf, interval: Duration, publish: watch::Sender<KubeletState>) {
    let mut failing = false;
    loop {
        match ask(&socket).await {
            Ok(state) => {
                failing = false;
                publish.send_if_modified(|known| {
                    let differs = *known != state;
                    *known = state;
                    differs
                });
            }
            Err(error) => {
                if !std::mem::replace(&mut failing, true) {
                    tracing::warn!(%error, "cannot ask the kubelet who holds which device");
                }
                publish.send_if_modified(|state| std::mem::replace(&mut state.known, false));
            }
        }
        tokio::select! {
            biased;
            () = publish.closed() => return,
            () = tokio::time::sleep(interval) => {}
        }
    }
}

/// What a fake kubelet answers.
#[derive(Debug, Clone, Default)]
pub struct FakeKubeletState {
    /// Answer to List.
    pub pods: ListPodResourcesResponse,
    /// Answer to GetAllocatableResources.
    pub allocatable: AllocatableResourcesResponse,
    /// When set, every question fails with this code.
    pub failing: Option<tonic::Code>,
}

/// A PodResources server on a Unix socket, for tests and for `run --source fake`. Dropping it stops it.
#[derive(Debug)]
pub struct FakeKubelet {
    state: Arc<Mutex<FakeKubeletState>>,
    server: JoinHandle<()>,
}

impl FakeKubelet {
    /// Listens on `socket`; a file that is there already is an error.
    pub fn start(socket: &Path, state: FakeKubeletState) -> std::io::Result<Self> {
        let listener = UnixListener::bind(socket)?;
        let state = Arc::new(Mutex::new(state));
        let service = PodResourcesListerServer::new(FakeService(Arc::clone(&state)));
        let server = tokio::spawn(async move {
            let incoming = UnixListenerStream::new(listener);
            let served = tonic::transport::Server::builder()
                .add_service(service)
                .serve_with_incoming(incoming)
                .await;
            if let Err(error) = served {
                tracing::error!(%error, "the fake kubelet ended");
            }
        });
        Ok(Self { state, server })
    }

    /// Changes what it answers.
    pub fn change(&self, change: impl FnOnce(&mut FakeKubeletState)) {
        change(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner));
    }
}

impl Drop for FakeKubelet {
    fn drop(&mut self) {
        self.server.abort();
    }
}

struct FakeService(Arc<Mutex<FakeKubeletState>>);

impl FakeService {
    fn state(&self) -> Result<FakeKubeletState, Status> {
        let state = self
            .0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        match state.failing {
            Some(code) => Err(Status::new(code, "failing on request")),
            None => Ok(state),
        }
    }
}

#[tonic::async_trait]
impl PodResourcesLister for FakeService {
    async fn list(
        &self,
        _: Request<ListPodResourcesRequest>,
    ) -> Result<Response<ListPodResourcesResponse>, Status> {
        Ok(Response::new(self.state()?.pods))
    }

    async fn get_allocatable_resources(
        &self,
        _: Request<AllocatableResourcesRequest>,
    ) -> Result<Response<AllocatableResourcesResponse>, Status> {
        Ok(Response::new(self.state()?.allocatable))
    }

    async fn get(
        &self,
        request: Request<GetPodResourcesRequest>,
    ) -> Result<Response<GetPodResourcesResponse>, Status> {
        let wanted = request.into_inner();
        let mut pods = self.state()?.pods.pod_resources.into_iter();
        let found =
            pods.find(|pod| pod.name == wanted.pod_name && pod.namespace == wanted.pod_namespace);
        let pod = found.ok_or_else(|| Status::not_found("no such pod"))?;
        Ok(Response::new(GetPodResourcesResponse {
            pod_resources: Some(pod),
        }))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use muster_proto::inventory::Device;
    use muster_proto::podresources::{ContainerDevices, ContainerResources, PodResources};
    use tokio::sync::watch;

    use super::{FakeKubelet, FakeKubeletState, ask, poll};
    use crate::kubelet::KubeletState;

    fn answers() -> FakeKubeletState {
        let held = |ids: &[&str]| ContainerDevices {
            resource_name: "nvidia.com/gpu".into(),
            device_ids: ids.iter().map(|id| (*id).to_owned()).collect(),
            topology: None,
        };
        let container = ContainerResources {
            name: "main".into(),
            devices: vec![held(&["GPU-1"])],
            ..Default::default()
        };
        let pod = PodResources {
            name: "train-0".into(),
            namespace: "ml".into(),
            containers: vec![container],
        };
        let mut state = FakeKubeletState::default();
        state.pods.pod_resources.push(pod);
        state.allocatable.devices.push(held(&["GPU-1", "GPU-2"]));
        state
    }

    #[tokio::test]
    async fn a_failure_makes_the_state_unknown_and_forgets_no_holder() {
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("kubelet.sock");
        assert!(
            ask(&socket)
                .await
                .unwrap_err()
                .to_string()
                .contains("kubelet.sock")
        );
        let kubelet = FakeKubelet::start(&socket, answers()).unwrap();
        let (publish, mut seen) = watch::channel(KubeletState::default());
        let polling = tokio::spawn(poll(socket, Duration::from_millis(10), publish));
        let state = seen.wait_for(|state| state.known).await.unwrap().clone();
        let device = Device {
            uuid: "GPU-1".into(),
            ..Device::default()
        };
        assert_eq!(state.holders_of(&device)[0].pod, "train-0");
        assert_eq!(state.allocatable["nvidia.com/gpu"].len(), 2);
        kubelet.change(|state| state.failing = Some(tonic::Code::ResourceExhausted));
        let state = seen.wait_for(|state| !state.known).await.unwrap().clone();
        assert_eq!(state.holders_of(&device)[0].pod, "train-0");
        assert_eq!(state.allocatable["nvidia.com/gpu"].len(), 2);
        kubelet.change(|state| *state = FakeKubeletState::default());
        let state = seen.wait_for(|state| state.known).await.unwrap().clone();
        assert_eq!(state.holders_of(&device), []);
        drop(seen);
        polling.await.unwrap();
    }
}
