//! What a running agent tells of flows and processes.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Result, ensure};
use secmesh_tests::lab;
use serde_json::Value;
use xtask::lab::net::{self, Family};
use xtask::lab::{echo, ns};

/// Longest wait for a record.
const TURNS: usize = 100;

fn of<'a>(record: &'a Value, pointer: &str) -> &'a Value {
    record.pointer(pointer).unwrap_or(&Value::Null)
}

#[test]
#[ignore = "needs root: cargo xtask test runs it"]
fn an_agent_lists_the_flows_and_processes_that_there_were() -> Result<()> {
    let lab = lab(1)?;
    let agent = lab.agent(1)?;
    let client = lab.state().namespace("client");
    for family in [Family::V4, Family::V6] {
        let service = SocketAddr::new(net::node_address(family, 1), echo::PORT);
        ns::within(&client, move || echo::ask(service))?;
        let mut found = None;
        for _ in 0..TURNS {
            let flows: Vec<Value> = agent.json(&["flows", "--limit", "1000"])?;
            found = flows.into_iter().find(|flow| {
                of(flow, "/dst") == &Value::from(service.ip().to_string())
                    && of(flow, "/dst_port") == &Value::from(echo::PORT)
            });
            if found.is_some() {
                break;
            }
            std::thread::sleep(Duration::from_millis(200));
        }
        let flow = found.unwrap_or_default();
        let bytes = |side: &str| {
            of(&flow, &format!("/{side}/payload_bytes"))
                .as_u64()
                .unwrap_or(0)
        };
        ensure!(
            bytes("forward") > 0 && bytes("forward") == bytes("backward"),
            "an echo sends what it gets: {flow:#}"
        );
        ensure!(of(&flow, "/outgoing") == &Value::Bool(false), "{flow:#}");
        ensure!(of(&flow, "/forward/syn") == &Value::from(1), "{flow:#}");
    }
    let table = agent.must(&["flows", "--limit", "5"])?;
    ensure!(
        table.contains("ANSWERED") && table.contains("tcp"),
        "{table}"
    );

    let mut seen = false;
    for _ in 0..TURNS {
        let processes: Vec<Value> = agent.json(&["processes", "--limit", "4000"])?;
        // The command that asked is a process itself.
        seen = processes.iter().any(|p| {
            of(p, "/change") == &Value::from("exit") && of(p, "/comm") == &Value::from("secmesh")
        });
        if seen {
            break;
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    ensure!(
        seen,
        "no process was seen: {}",
        agent.must(&["status", "--all"])?
    );
    let status: Value = agent.json(&["status"])?;
    ensure!(
        of(&status, "/flows/interfaces/0/by") == &Value::from("tcx"),
        "{status:#}"
    );
    ensure!(status.get("no_processes").is_none(), "{status:#}");
    println!("{table}\n{}", agent.must(&["status"])?);
    Ok(())
}
