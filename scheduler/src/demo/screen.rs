//! The picture: every GPU of the pools, the gangs with their reasons, and the last news.

use std::io::{self, Write};
use std::time::Duration;

use super::look::{Cell, Look};

const CLEAR: &str = "\x1b[H\x1b[2J";
const RESET: &str = "\x1b[0m";
const BOLD: &str = "\x1b[1m";
const DIM: &str = "\x1b[2m";
/// Colours of gangs, in order of name.
const COLOURS: [&str; 7] = [
    "\x1b[36m", "\x1b[33m", "\x1b[35m", "\x1b[32m", "\x1b[34m", "\x1b[96m", "\x1b[93m",
];
const SICK: &str = "\x1b[97;41m";
/// Nodes per line.
const PER_LINE: usize = 4;
/// Lines of nodes that are drawn; more nodes than that are summed up.
const LINES_MAX: usize = 16;
/// News that are shown.
const NEWS: usize = 8;
/// Widest message.
const MESSAGE_MAX: usize = 100;

/// Draws the picture over the one before, and below it what is to be read all the time.
pub fn draw(out: &mut impl Write, look: &Look, elapsed: Duration, below: &str) -> io::Result<()> {
    let picture = picture(look, elapsed);
    out.write_all(CLEAR.as_bytes())?;
    out.write_all(picture.as_bytes())?;
    out.write_all(b"\n")?;
    out.write_all(below.as_bytes())?;
    out.flush()
}

fn letter(index: usize) -> char {
    u8::try_from(index % 26).map_or('?', |index| char::from(b'A'.saturating_add(index)))
}

fn colour(index: usize) -> &'static str {
    COLOURS.get(index % COLOURS.len()).copied().unwrap_or(RESET)
}

/// The picture as text.
pub fn picture(look: &Look, elapsed: Duration) -> String {
    let names: Vec<&String> = look.gangs.keys().collect();
    let mut text = format!(
        "{BOLD}Muster demo{RESET}  {:>4.1} s   one cell is one GPU: a letter is its gang, {DIM}·{RESET} is free, {SICK}x{RESET} is broken\n\n",
        elapsed.as_secs_f32()
    );
    let nodes: Vec<(&String, &Vec<Cell>)> = look.nodes.iter().collect();
    for line in nodes.chunks(PER_LINE).take(LINES_MAX) {
        for (name, cells) in line {
            text.push_str(&format!("  {name:<11}"));
            for cell in cells.iter() {
                text.push_str(&draw_cell(cell, &names));
            }
            text.push_str("  ");
        }
        text.push('\n');
    }
    let hidden = nodes
        .len()
        .saturating_sub(PER_LINE.saturating_mul(LINES_MAX));
    if hidden > 0 {
        text.push_str(&format!("  and {hidden} nodes more\n"));
    }
    text.push('\n');
    for (index, gang) in look.gangs.values().enumerate() {
        let message: String = gang.message.chars().take(MESSAGE_MAX).collect();
        text.push_str(&format!(
            "  {}{}{RESET} {:<24} {BOLD}{:<10}{RESET} {:>6}  {message}\n",
            colour(index),
            letter(index),
            gang.name,
            gang.phase,
            gang.members
        ));
    }
    text.push('\n');
    for line in look.news.iter().skip(look.news.len().saturating_sub(NEWS)) {
        let line: String = line.chars().take(MESSAGE_MAX.saturating_add(20)).collect();
        text.push_str(&format!("{DIM}{line}{RESET}\n"));
    }
    text
}

fn draw_cell(cell: &Cell, names: &[&String]) -> String {
    match cell {
        Cell::Free => format!("{DIM}·{RESET}"),
        Cell::Sick => format!("{SICK}x{RESET}"),
        Cell::Held(gang) => match names.iter().position(|name| *name == gang) {
            Some(index) => format!("{}{}{RESET}", colour(index), letter(index)),
            None => "?".into(),
        },
    }
}
