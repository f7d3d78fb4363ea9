//! Protobuf messages without their types: fields by number, nested as far as they can be read so.

use crate::rng::Rng;

/// Longest nesting that is looked into.
const DEPTH_MAX: u32 = 6;

/// A field.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Field {
    /// Its number.
    pub number: u64,
    /// What it holds.
    pub content: Content,
}

/// What a field holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Content {
    /// Wire type 0.
    Number(u64),
    /// Wire type 1.
    Eight([u8; 8]),
    /// Wire type 5.
    Four([u8; 4]),
    /// Wire type 2, that reads as a message.
    Message(Vec<Field>),
    /// Wire type 2.
    Bytes(Vec<u8>),
}

fn varint(bytes: &mut &[u8]) -> Option<u64> {
    let mut value = 0_u64;
    for shift in (0..64).step_by(7) {
        let (first, rest) = bytes.split_first()?;
        *bytes = rest;
        value |= u64::from(first & 0x7f) << shift;
        if first & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

fn take<'a>(bytes: &mut &'a [u8], count: usize) -> Option<&'a [u8]> {
    let (taken, rest) = bytes.split_at_checked(count)?;
    *bytes = rest;
    Some(taken)
}

/// Reads a message; `None` where it is none.
pub(super) fn read(bytes: &[u8]) -> Option<Vec<Field>> {
    read_to(bytes, 0)
}

fn read_to(mut bytes: &[u8], depth: u32) -> Option<Vec<Field>> {
    let mut fields = Vec::new();
    while !bytes.is_empty() {
        let tag = varint(&mut bytes)?;
        let content = match tag & 7 {
            0 => Content::Number(varint(&mut bytes)?),
            1 => Content::Eight(take(&mut bytes, 8)?.try_into().ok()?),
            5 => Content::Four(take(&mut bytes, 4)?.try_into().ok()?),
            2 => {
                let length = usize::try_from(varint(&mut bytes)?).ok()?;
                let inner = take(&mut bytes, length)?;
                let nested = (depth < DEPTH_MAX && !inner.is_empty())
                    .then(|| read_to(inner, depth + 1))
                    .flatten();
                nested.map_or_else(|| Content::Bytes(inner.to_vec()), Content::Message)
            }
            _ => return None,
        };
        fields.push(Field {
            number: tag >> 3,
            content,
        });
    }
    Some(fields)
}

fn put_varint(mut value: u64, to: &mut Vec<u8>) {
    while value >= 0x80 {
        to.push(u8::try_from(value & 0x7f).unwrap_or(0) | 0x80);
        value >>= 7;
    }
    to.push(u8::try_from(value).unwrap_or(0));
}

/// Writes a message.
pub(super) fn write(fields: &[Field]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for field in fields {
        let mut put = |kind: u64, content: &[u8], with_length: bool| {
            put_varint((field.number << 3) | kind, &mut bytes);
            if with_length {
                put_varint(u64::try_from(content.len()).unwrap_or(0), &mut bytes);
            }
            bytes.extend_from_slice(content);
        };
        match &field.content {
            Content::Number(value) => {
                let mut number = Vec::new();
                put_varint(*value, &mut number);
                put(0, &number, false);
            }
            Content::Eight(content) => put(1, content, false),
            Content::Four(content) => put(5, content, false),
            Content::Bytes(content) => put(2, content, true),
            Content::Message(fields) => put(2, &write(fields), true),
        }
    }
    bytes
}

/// Changes a field somewhere in the message.
pub(super) fn change(rng: &mut Rng, fields: &mut Vec<Field>, words: &[&str]) {
    let at = rng.index(fields.len());
    if let Some(Field {
        content: Content::Message(inner),
        ..
    }) = fields.get_mut(at)
        && rng.chance(80)
    {
        return change(rng, inner, words);
    }
    match rng.index(7) {
        0 => {
            if at < fields.len() {
                fields.remove(at);
            }
        }
        1 => {
            let copy = fields.get(at).cloned();
            fields.extend(copy.into_iter().cycle().take(rng.index(40)));
        }
        2 => {
            let to = rng.index(fields.len());
            if at < fields.len() {
                fields.swap(at, to);
            }
        }
        3 => fields.push(Field {
            number: 1 + u64::try_from(rng.index(45)).unwrap_or(0),
            content: content(rng, words),
        }),
        4 => {
            if let Some(field) = fields.get_mut(at) {
                field.number = rng.number() >> rng.index(64).max(35);
            }
        }
        _ => {
            if let Some(field) = fields.get_mut(at) {
                field.content = match &field.content {
                    Content::Number(_) => Content::Number(number(rng)),
                    Content::Bytes(bytes) if rng.chance(30) => {
                        Content::Bytes(bytes.repeat(rng.index(400)))
                    }
                    Content::Bytes(_) => Content::Bytes(text(rng, words)),
                    _ => content(rng, words),
                };
            }
        }
    }
}

fn number(rng: &mut Rng) -> u64 {
    match rng.index(4) {
        0 => u64::MAX,
        1 => rng.number() & 7,
        2 => 1 << rng.index(64),
        _ => rng.number() >> rng.index(64),
    }
}

fn text(rng: &mut Rng, words: &[&str]) -> Vec<u8> {
    match rng.index(5) {
        0 => Vec::new(),
        1 => vec![b'x'; rng.index(400)],
        2 => vec![0xff, 0xfe, 0x80],
        3 => "\u{1b}[31m\n\u{202e}".as_bytes().to_vec(),
        _ => {
            let word = words.get(rng.index(words.len())).copied();
            word.unwrap_or_default().as_bytes().to_vec()
        }
    }
}

fn content(rng: &mut Rng, words: &[&str]) -> Content {
    match rng.index(4) {
        0 => Content::Number(number(rng)),
        1 => Content::Eight(rng.number().to_le_bytes()),
        2 => Content::Four([0xff, 0, 0, 0x7f]),
        _ => Content::Bytes(text(rng, words)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_read_is_written_again() {
        let inner = vec![
            Field {
                number: 1,
                content: Content::Bytes(b"\xff\xff".to_vec()),
            },
            Field {
                number: 3,
                content: Content::Number(u64::MAX),
            },
        ];
        let message = vec![
            Field {
                number: 2,
                content: Content::Eight([7; 8]),
            },
            Field {
                number: 40,
                content: Content::Message(inner),
            },
            Field {
                number: 5,
                content: Content::Four([1; 4]),
            },
        ];
        let bytes = write(&message);
        assert_eq!(read(&bytes), Some(message));
        assert_eq!(read(bytes.get(..bytes.len() - 1).unwrap_or_default()), None);
    }
}
