use clap::{CommandFactory as _, error::ErrorKind};

use super::*;

fn parse(line: &str) -> Result<Cli, clap::Error> {
    Cli::try_parse_from(line.split_whitespace())
}

#[test]
fn the_definition_holds_together() {
    Cli::command().debug_assert();
}

#[test]
fn every_command_has_help_and_an_example() {
    fn check(command: &clap::Command, path: &str, inherited: bool) {
        let help = command
            .get_after_help()
            .map(ToString::to_string)
            .unwrap_or_default();
        let has = inherited || help.contains("Example") || path == "secmesh";
        assert!(has, "{path} has no example");
        assert!(command.get_about().is_some(), "{path} has no help");
        for argument in command
            .get_arguments()
            .filter(|a| a.get_id() != "help" && a.get_id() != "version")
        {
            assert!(
                argument.get_help().is_some(),
                "{path} {} has no help",
                argument.get_id()
            );
        }
        for sub in command.get_subcommands().filter(|c| c.get_name() != "help") {
            check(
                sub,
                &format!("{path} {}", sub.get_name()),
                has && path != "secmesh",
            );
        }
    }
    check(&Cli::command(), "secmesh", false);
}

#[test]
fn the_contracts_lines_parse() {
    for line in [
        "secmesh --config c --state s --socket x init --name n1 --mesh lab --advertise 10.0.0.1:4747 --json",
        "secmesh init --name n1 --zone z --block-ttl 1h",
        "secmesh invite --name n2 --json",
        "secmesh invite --expires 10m --operator-key k",
        "secmesh join secmesh1-x --name n2 --zone z --advertise [2001:db8::1]:1",
        "secmesh run --interface a --interface b --mode enforce --listen [::]:1 --detach-on-exit",
        "secmesh status --json",
        "secmesh mode enforce --confirm 60s",
        "secmesh mode confirm",
        "secmesh metrics --json",
        "secmesh block 192.0.0.0/7 --override-risky --reason x",
        "secmesh -vv peers",
        "secmesh alerts --limit 5",
        "secmesh decisions list",
        "secmesh decisions show ab",
        "secmesh decisions add 192.0.2.1",
        "secmesh decisions delete 192.0.2.1",
        "secmesh decisions import f --list x --format nft --for 1d --spread 5% --skip-invalid --dry-run --json",
        "secmesh decisions import - --override-risky --reason r",
        "secmesh decisions export --format crowdsec --list x --output f",
        "secmesh decisions lists --json",
        "secmesh decisions remove-list x",
        "secmesh block 192.0.2.0/24 --for 15m --mesh --reason x",
        "secmesh unblock 2001:db8::/32 --operator-key f",
        "secmesh unblock 192.0.2.1 --false-positive",
        "secmesh trust",
        "secmesh trust n2 --json",
        "secmesh allow add 192.0.2.1 --reason x",
        "secmesh allow remove 192.0.2.1",
        "secmesh allow list",
        "secmesh explain 192.0.2.1",
        "secmesh mode",
        "secmesh mode monitor",
        "secmesh ledger verify",
        "secmesh ledger verify f",
        "secmesh ledger show --last 3",
        "secmesh ledger prove 17",
        "secmesh ledger prove 17 dir",
        "secmesh replay a b --json",
        "secmesh detach",
        "secmesh completions bash",
        "secmesh man --dir d",
        "secmesh version",
    ] {
        assert!(parse(line).is_ok(), "{line}: {}", parse(line).unwrap_err());
    }
}

#[test]
fn bad_values_are_usage_errors_that_say_how_to_write_them() {
    for (line, says) in [
        ("secmesh block 300.1.2.3", "write one like 192.0.2.7"),
        ("secmesh explain 192.0.2.1/24", "did you mean 192.0.2.0/24?"),
        ("secmesh block 192.0.2.0/33", "from 0 to 32"),
        ("secmesh block 192.0.2.1 --for soon", "15m"),
        ("secmesh block 192.0.2.1 --for 0s", "at least 1s"),
        ("secmesh block 192.0.2.1 --for 500ms", "whole seconds"),
        (
            "secmesh init --advertise 0.0.0.0:1",
            "no other node can reach",
        ),
        ("secmesh init --advertise n1", "[2001:db8::1]:4747"),
        ("secmesh init --name a/b", "a-z A-Z 0-9 . _ -"),
        ("secmesh mode drop", "monitor, enforce"),
        ("secmesh alerts --limit 0", "1 to 100000"),
    ] {
        let error = parse(line).unwrap_err();
        assert_eq!(error.exit_code(), 2, "{line}");
        assert!(error.to_string().contains(says), "{line}: {error}");
    }
    assert_eq!(
        parse("secmesh --help").unwrap_err().kind(),
        ErrorKind::DisplayHelp
    );
    assert_eq!(parse("secmesh --version").unwrap_err().exit_code(), 0);
}
