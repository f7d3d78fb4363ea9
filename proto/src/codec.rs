//! How messages are encoded: as everywhere, with small buffers.

use std::marker::PhantomData;

use prost::Message;
use tonic::codec::{BufferSettings, Codec};
use tonic_prost::{ProstCodec, ProstDecoder, ProstEncoder};

/// Buffer of each direction of a stream, bytes; it grows for what is larger and keeps that. A heartbeat has 21, the
/// snapshot of 8 GPUs 1.6 KB. A stream lives for an hour, and a scheduler has one with every node: tonic's 8 KiB
/// would be 240 MiB for 15,000.
const BUFFER_BYTES: usize = 512;
/// Bytes that are encoded before they are handed on; tonic's own choice.
const YIELD_BYTES: usize = 32 * 1024;

/// Protocol buffers on gRPC.
#[derive(Clone, Copy, Debug)]
pub struct LeanCodec<T, U>(PhantomData<(T, U)>);

impl<T, U> Default for LeanCodec<T, U> {
    fn default() -> Self {
        Self(PhantomData)
    }
}

impl<T, U> Codec for LeanCodec<T, U>
where
    T: Message + Send + 'static,
    U: Message + Default + Send + 'static,
{
    type Encode = T;
    type Decode = U;
    type Encoder = ProstEncoder<T>;
    type Decoder = ProstDecoder<U>;

    fn encoder(&mut self) -> Self::Encoder {
        ProstCodec::<T, U>::raw_encoder(BufferSettings::new(BUFFER_BYTES, YIELD_BYTES))
    }

    fn decoder(&mut self) -> Self::Decoder {
        ProstCodec::<T, U>::raw_decoder(BufferSettings::new(BUFFER_BYTES, YIELD_BYTES))
    }
}
