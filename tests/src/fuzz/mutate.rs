//! Inputs from inputs: by bytes, by the parts of JSON, by the fields of a protobuf message.

use serde_json::Value;

use super::{INPUT_MAX, wire};
use crate::rng::Rng;

/// Numbers at which something ends.
const NUMBERS: &[&str] = &[
    "0",
    "-1",
    "1",
    "255",
    "256",
    "65535",
    "65536",
    "16384",
    "2147483647",
    "-2147483648",
    "4294967296",
    "9223372036854775807",
    "-9223372036854775808",
    "18446744073709551615",
    "1e300",
    "-1e-300",
    "0.1",
    "99999999999999999999999999",
];

/// An input with one to four things changed. Each change may make it some dozen times as large, so each is cut to
/// [`INPUT_MAX`]: four after each other come to gigabytes.
pub(super) fn mutated(rng: &mut Rng, mut input: Vec<u8>, other: &[u8], words: &[&str]) -> Vec<u8> {
    for _ in 0..=rng.index(4) {
        input.truncate(INPUT_MAX);
        let way = rng.index(100);
        let json = (way < 60).then(|| serde_json::from_slice::<Value>(&input).ok());
        if let Some(Some(mut value)) = json {
            change_json(rng, &mut value, other, words);
            input = value.to_string().into_bytes();
            // Keys twice, and nesting without end, are nothing that a value can hold.
            if way < 3 {
                input = twisted(rng, &input);
            }
            continue;
        }
        if way < 85
            && let Some(mut message) = wire::read(&input)
        {
            wire::change(rng, &mut message, words);
            input = wire::write(&message);
            continue;
        }
        change_bytes(rng, &mut input, other, words);
    }
    input.truncate(INPUT_MAX);
    input
}

fn twisted(rng: &mut Rng, input: &[u8]) -> Vec<u8> {
    let text = String::from_utf8_lossy(input).into_owned();
    match rng.index(2) {
        0 => {
            let inner = text.trim_start_matches('{').trim_end_matches('}');
            format!("{{{inner},{inner}}}").into_bytes()
        }
        _ => {
            let depth = rng.index(3000);
            let (open, close) = match rng.index(2) {
                0 => ("[", "]"),
                _ => ("{\"a\":", "}"),
            };
            let nested = format!("{}{text}{}", open.repeat(depth), close.repeat(depth));
            nested.into_bytes()
        }
    }
}

/// A range of some bytes.
fn range(rng: &mut Rng, length: usize) -> std::ops::Range<usize> {
    let from = rng.index(length);
    let most = match rng.index(3) {
        0 => 1,
        1 => 16,
        _ => length,
    };
    let to = from.saturating_add(1 + rng.index(most)).min(length);
    from..to
}

fn change_bytes(rng: &mut Rng, input: &mut Vec<u8>, other: &[u8], words: &[&str]) {
    let at = rng.index(input.len() + 1);
    let place = range(rng, input.len());
    let byte = u8::try_from(rng.number() & 0xff).unwrap_or(0);
    match rng.index(9) {
        0 => {
            if let Some(part) = input.get_mut(at) {
                *part ^= 1 << rng.index(8);
            }
        }
        1 => {
            if let Some(part) = input.get_mut(at) {
                *part = byte;
            }
        }
        2 => input.insert(at, byte),
        3 => {
            input.drain(place);
        }
        4 => {
            let copy = input.get(place).map(<[u8]>::to_vec).unwrap_or_default();
            let times = 1 + rng.index(8);
            input.splice(at..at, copy.repeat(times));
        }
        5 => {
            let from = range(rng, other.len());
            let part = other.get(from).map(<[u8]>::to_vec).unwrap_or_default();
            input.splice(place, part);
        }
        6 => {
            let word = rng.of(words);
            input.splice(place, word.bytes());
        }
        7 => change_number(rng, input),
        _ => input.truncate(at),
    }
}

/// Puts another number in place of one in the text.
fn change_number(rng: &mut Rng, input: &mut Vec<u8>) {
    let starts: Vec<usize> = (0..input.len())
        .filter(|at| input.get(*at).is_some_and(u8::is_ascii_digit))
        .collect();
    let Some(from) = starts.get(rng.index(starts.len())).copied() else {
        return;
    };
    let digits = input
        .iter()
        .skip(from)
        .take_while(|byte| byte.is_ascii_digit());
    let to = from.saturating_add(digits.count());
    let number = rng.of(NUMBERS);
    input.splice(from..to, number.bytes());
}

/// How many parts a value has, itself included.
fn parts(value: &Value) -> usize {
    1 + match value {
        Value::Array(list) => list.iter().map(parts).sum(),
        Value::Object(map) => map.values().map(parts).sum(),
        _ => 0,
    }
}

/// The part with this number, counted from 0 in depth.
fn part<'a>(value: &'a mut Value, number: &mut usize) -> Option<&'a mut Value> {
    if *number == 0 {
        return Some(value);
    }
    *number -= 1;
    let inner: Vec<&mut Value> = match value {
        Value::Array(list) => list.iter_mut().collect(),
        Value::Object(map) => map.values_mut().collect(),
        _ => Vec::new(),
    };
    for value in inner {
        let here = parts(value);
        if *number < here {
            return part(value, number);
        }
        *number -= here;
    }
    None
}

fn change_json(rng: &mut Rng, value: &mut Value, other: &[u8], words: &[&str]) {
    let mut number = rng.index(parts(value));
    let Some(part) = part(value, &mut number) else {
        return;
    };
    match rng.index(8) {
        0 => *part = small_value(rng, words),
        1 => *part = Value::Array(vec![part.clone(); rng.index(4)]),
        2 => {
            if let Ok(mut foreign) = serde_json::from_slice::<Value>(other) {
                let mut number = rng.index(parts(&foreign));
                if let Some(foreign) = self::part(&mut foreign, &mut number) {
                    *part = foreign.take();
                }
            }
        }
        3 => match part {
            Value::String(text) => {
                let mut bytes = std::mem::take(text).into_bytes();
                change_bytes(rng, &mut bytes, other, words);
                bytes.truncate(4096);
                *text = String::from_utf8_lossy(&bytes).into_owned();
            }
            other => *other = small_value(rng, words),
        },
        4 => {
            if let Value::Object(map) = part {
                let key = map.keys().nth(rng.index(map.len())).cloned();
                map.remove(&key.unwrap_or_default());
            } else if let Value::Array(list) = part {
                list.truncate(rng.index(list.len() + 1));
            }
        }
        5 => {
            if let Value::Object(map) = part {
                let key = rng.of(words).to_owned();
                let value = small_value(rng, words);
                map.insert(key, value);
            } else if let Value::Array(list) = part {
                let copies = list.first().cloned().into_iter().cycle();
                list.extend(copies.take(rng.index(64)));
            }
        }
        6 => {
            if let Value::Object(map) = part {
                // Another case of a name.
                let key = map.keys().nth(rng.index(map.len())).cloned();
                if let Some((key, value)) = key.and_then(|key| map.remove_entry(&key)) {
                    let other = match rng.index(3) {
                        0 => key.to_lowercase(),
                        1 => key.to_uppercase(),
                        _ => format!("{key}\u{0}"),
                    };
                    map.insert(other, value);
                }
            }
        }
        _ => {
            let word = rng.of(words);
            *part = Value::from(word);
        }
    }
}

fn small_value(rng: &mut Rng, words: &[&str]) -> Value {
    match rng.index(8) {
        0 => Value::Null,
        1 => Value::from(rng.chance(50)),
        2 | 3 => {
            let number = rng.of(NUMBERS);
            match rng.chance(50) {
                true => Value::from(number),
                false => serde_json::from_str(number).unwrap_or(Value::Null),
            }
        }
        4 => Value::Array(Vec::new()),
        5 => Value::Object(serde_json::Map::new()),
        6 => {
            let length = rng.index(600);
            let odd = ["x", "\u{1b}[31m", "\n", "é", "\u{202e}", "/", "\u{0}"];
            Value::from(rng.of(&odd).repeat(length))
        }
        _ => Value::from(rng.of(words)),
    }
}
