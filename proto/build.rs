//! Compiles the .proto files without protoc.
use std::error::Error;

const FILES: &[&str] = &[
    "proto/muster/inventory/v1/inventory.proto",
    "proto/kubelet/podresources/v1/podresources.proto",
];

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed=proto");
    let descriptors = protox::compile(FILES, ["proto"])?;
    tonic_prost_build::configure()
        .codec_path("crate::codec::LeanCodec")
        .compile_fds(descriptors)?;
    Ok(())
}
