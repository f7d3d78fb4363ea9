//! Tables in CSV, read strictly: columns by name, and errors that say where, what, and which limit.

use std::ops::RangeInclusive;
use std::path::Path;

use crate::error::{Error, short};

/// A table that is read row by row.
pub(crate) struct Table<R> {
    file: String,
    reader: csv::Reader<R>,
    names: csv::StringRecord,
    record: csv::StringRecord,
    rows: usize,
    rows_max: usize,
}

/// One row.
#[derive(Clone, Copy)]
pub(crate) struct Row<'a> {
    file: &'a str,
    names: &'a csv::StringRecord,
    record: &'a csv::StringRecord,
    /// Number of the row, from 1.
    pub(crate) number: usize,
}

/// Name of a file, for people.
pub(crate) fn file_name(path: &Path) -> String {
    let name = path.file_name().unwrap_or_default();
    name.to_string_lossy().into_owned()
}

impl Table<std::io::BufReader<std::fs::File>> {
    /// Opens a file that must have these columns, among others, and at most so many rows.
    pub(crate) fn open(path: &Path, wanted: &[&str], rows_max: usize) -> Result<Self, Error> {
        let file = std::fs::File::open(path).map_err(Error::io(path))?;
        Self::new(
            &file_name(path),
            std::io::BufReader::new(file),
            wanted,
            rows_max,
        )
    }
}

impl<R: std::io::Read> Table<R> {
    /// A table that must have these columns, among others, and at most so many rows.
    pub(crate) fn new(
        file: &str,
        input: R,
        wanted: &[&str],
        rows_max: usize,
    ) -> Result<Self, Error> {
        let mut reader = csv::Reader::from_reader(input);
        let names = reader.headers().map_err(broken(file))?.clone();
        for name in wanted {
            let said = match names.iter().filter(|found| found.trim() == *name).count() {
                1 => continue,
                0 => format!("has no column {name}; it must have {}", wanted.join(", ")),
                several => format!("has {several} columns {name}; it must have one"),
            };
            let file = file.to_owned();
            return Err(Error::Table { file, said });
        }
        Ok(Self {
            file: file.to_owned(),
            reader,
            names,
            record: csv::StringRecord::new(),
            rows: 0,
            rows_max,
        })
    }

    /// Whether it has a column.
    pub(crate) fn has(&self, name: &str) -> bool {
        self.names.iter().any(|found| found.trim() == name)
    }

    /// The next row; a table without any is an error.
    pub(crate) fn row(&mut self) -> Result<Option<Row<'_>>, Error> {
        let more = self.reader.read_record(&mut self.record);
        if !more.map_err(broken(&self.file))? {
            return match self.rows {
                0 => Err(self.wrong("has no rows")),
                _ => Ok(None),
            };
        }
        if self.rows >= self.rows_max {
            let most = self.rows_max;
            return Err(self.wrong(format!("has more than {most} rows, which is the most")));
        }
        self.rows = self.rows.saturating_add(1);
        Ok(Some(Row {
            file: &self.file,
            names: &self.names,
            record: &self.record,
            number: self.rows,
        }))
    }

    /// Something is wrong with the table as a whole.
    pub(crate) fn wrong(&self, said: impl Into<String>) -> Error {
        Error::Table {
            file: self.file.clone(),
            said: said.into(),
        }
    }
}

fn broken(file: &str) -> impl FnOnce(csv::Error) -> Error {
    let file = file.to_owned();
    move |error| Error::Table {
        file,
        said: error.to_string(),
    }
}

impl<'a> Row<'a> {
    /// What is in a column, without blanks around it; nothing where there is no such column.
    pub(crate) fn text(&self, field: &str) -> &'a str {
        let column = self.names.iter().position(|name| name.trim() == field);
        column
            .and_then(|column| self.record.get(column))
            .unwrap_or_default()
            .trim()
    }

    /// What is in a column is not allowed.
    pub(crate) fn wrong(&self, field: &str, limit: impl Into<String>) -> Error {
        Error::Row {
            file: self.file.to_owned(),
            line: self.record.position().map_or(0, csv::Position::line),
            field: field.to_owned(),
            value: short(self.text(field)),
            limit: limit.into(),
        }
    }

    /// A whole number within limits.
    pub(crate) fn number(&self, field: &str, limits: RangeInclusive<u32>) -> Result<u32, Error> {
        let number = self.text(field).parse().ok();
        number
            .filter(|number| limits.contains(number))
            .ok_or_else(|| {
                let (least, most) = (limits.start(), limits.end());
                self.wrong(field, format!("must be a number from {least} to {most}"))
            })
    }
}
