//! Plain GETs on loopback: Muster's pages.

use std::time::Duration;

use anyhow::{Context as _, bail};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

/// Longest wait for a page.
const PAGE_MAX: Duration = Duration::from_secs(5);

/// Body of a page that is answered with 200.
pub async fn get(address: &str, path: &str) -> anyhow::Result<String> {
    let exchange = async {
        let mut stream = TcpStream::connect(address).await?;
        let request =
            format!("GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await?;
        Ok::<_, std::io::Error>(String::from_utf8_lossy(&answer).into_owned())
    };
    let answer = tokio::time::timeout(PAGE_MAX, exchange)
        .await
        .with_context(|| format!("GET {path}: no answer within {PAGE_MAX:?}"))?
        .with_context(|| format!("GET {path} of {address}"))?;
    let status = answer.lines().next().unwrap_or_default();
    if status.split(' ').nth(1) != Some("200") {
        bail!("GET {path} of {address} answers {status}");
    }
    Ok(answer
        .split_once("\r\n\r\n")
        .map_or(String::new(), |(_, body)| body.to_owned()))
}

/// Sum of a metric over all its labels; 0 where it is not on the page.
pub fn metric(page: &str, name: &str) -> f64 {
    page.lines()
        .filter_map(|line| {
            let rest = line.strip_prefix(name)?;
            (rest.starts_with('{') || rest.starts_with(' ')).then_some(rest)
        })
        .filter_map(|rest| rest.rsplit_once(' ')?.1.parse::<f64>().ok())
        .sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_metric_is_summed_over_its_labels_and_not_mixed_with_longer_names() {
        let page = "# HELP a b\nmuster_agents{state=\"live\"} 3\nmuster_agents{state=\"old\"} 2\nmuster_agents_total 9\n";
        assert!((metric(page, "muster_agents") - 5.0).abs() < 1e-9);
        assert!(metric(page, "absent").abs() < 1e-9);
    }
}
