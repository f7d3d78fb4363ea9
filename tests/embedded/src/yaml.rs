//! YAML into JSON values.

use serde_json::Value;

/// One document.
///
/// # Errors
/// The parser's text, with line and column.
pub fn one(text: &str) -> Result<Value, String> {
    serde_saphyr::from_str::<Value>(text).map_err(|e| e.to_string())
}

/// All documents of a text; empty ones are left out.
///
/// # Errors
/// The parser's text, with line and column.
pub fn all(text: &str) -> Result<Vec<Value>, String> {
    let mut list = Vec::new();
    let mut document = String::new();
    for line in text.lines().chain(["---"]) {
        if line.trim_end() == "---" {
            if document
                .lines()
                .any(|l| !l.trim().is_empty() && !l.trim_start().starts_with('#'))
            {
                list.push(one(&document)?);
            }
            document.clear();
        } else {
            document.push_str(line);
            document.push('\n');
        }
    }
    list.retain(|v| !v.is_null());
    Ok(list)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn several_documents_are_read_and_empty_ones_skipped() {
        let list = all("# a comment\n---\na: 1\nb: [x, \"y\"]\n---\n---\nc: {d: true}\n").unwrap();
        assert_eq!(
            list,
            vec![
                serde_json::json!({"a": 1, "b": ["x", "y"]}),
                serde_json::json!({"c": {"d": true}})
            ]
        );
        assert!(all("a: [").is_err());
    }
}
