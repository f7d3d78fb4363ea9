//! The library exports what NVML clients look up.

use std::path::{Path, PathBuf};

// Has cargo build the library in the same run.
use nvidia_ml as _;

/// Names that the agent, nvidia-smi-like tools and device plugins use.
const NAMES: &str = "nvmlInit_v2 nvmlInitWithFlags nvmlShutdown nvmlErrorString nvmlSystemGetDriverVersion \
    nvmlSystemGetNVMLVersion nvmlSystemGetCudaDriverVersion_v2 nvmlDeviceGetCount_v2 nvmlDeviceGetHandleByIndex_v2 \
    nvmlDeviceGetHandleByUUID nvmlDeviceGetHandleByPciBusId_v2 nvmlDeviceGetUUID nvmlDeviceGetName nvmlDeviceGetSerial \
    nvmlDeviceGetMinorNumber nvmlDeviceGetIndex nvmlDeviceGetPciInfo_v3 nvmlDeviceGetMemoryInfo_v2 \
    nvmlDeviceGetBAR1MemoryInfo nvmlDeviceGetCudaComputeCapability nvmlDeviceGetArchitecture nvmlDeviceGetBrand \
    nvmlDeviceGetComputeMode nvmlDeviceGetPersistenceMode nvmlDeviceGetMigMode nvmlDeviceGetMaxMigDeviceCount \
    nvmlDeviceGetMigDeviceHandleByIndex nvmlDeviceGetDeviceHandleFromMigDeviceHandle nvmlDeviceIsMigDeviceHandle \
    nvmlDeviceGetGpuInstanceId nvmlDeviceGetComputeInstanceId nvmlDeviceGetAttributes_v2 \
    nvmlDeviceGetGpuInstanceProfileInfo nvmlDeviceGetGpuInstancePossiblePlacements_v2 \
    nvmlDeviceGetGpuInstanceRemainingCapacity nvmlDeviceGetEccMode nvmlDeviceGetTotalEccErrors \
    nvmlDeviceGetRemappedRows nvmlDeviceGetRetiredPages nvmlDeviceGetRetiredPages_v2 \
    nvmlDeviceGetRetiredPagesPendingStatus nvmlDeviceGetSramEccErrorStatus nvmlDeviceGetFieldValues \
    nvmlDeviceGetNvLinkState nvmlDeviceGetNvLinkVersion nvmlDeviceGetNvLinkCapability \
    nvmlDeviceGetNvLinkRemotePciInfo_v2 nvmlDeviceGetNvLinkRemoteDeviceType nvmlDeviceGetTopologyCommonAncestor \
    nvmlDeviceGetP2PStatus nvmlDeviceGetCpuAffinity nvmlDeviceGetMemoryAffinity nvmlDeviceGetNumaNodeId \
    nvmlDeviceGetGpuFabricInfo nvmlDeviceGetGpuFabricInfoV nvmlDeviceGetPlatformInfo nvmlDeviceGetModuleId \
    nvmlDeviceGetPowerUsage nvmlDeviceGetEnforcedPowerLimit nvmlDeviceGetTemperature nvmlDeviceGetUtilizationRates \
    nvmlDeviceGetCurrentClocksThrottleReasons nvmlDeviceGetComputeRunningProcesses_v3 nvmlDeviceGetSupportedEventTypes \
    nvmlDeviceRegisterEvents nvmlEventSetCreate nvmlEventSetWait_v2 nvmlEventSetFree";

/// The library that cargo built for this test, beside the test's own binary.
fn library() -> PathBuf {
    let test = std::env::current_exe().unwrap();
    test.parent()
        .map(Path::to_owned)
        .unwrap()
        .join("libnvidia_ml.so")
}

#[test]
fn every_name_can_be_looked_up() {
    let path = library();
    // SAFETY: loading runs no code of ours: the library has no initialisers.
    #[allow(unsafe_code)]
    let library = unsafe { libloading::Library::new(&path) }.unwrap();
    for name in NAMES.split_whitespace() {
        // SAFETY: the symbol is only looked up, never called.
        #[allow(unsafe_code)]
        let found = unsafe { library.get::<unsafe extern "C" fn()>(name.as_bytes()) };
        assert!(
            found.is_ok(),
            "{name} is not exported by {}",
            path.display()
        );
    }
    assert_eq!(NAMES.split_whitespace().count(), 68);
}
