"""What `--help` shows on a terminal of 80 columns."""

from typer.testing import CliRunner

from deployments.cli.app import app


def lines_of_help(name):
    done = CliRunner().invoke(app, [*name.split()[1:], "--help"], terminal_width=80)
    assert done.exit_code == 0, done.output
    return done.output.splitlines()


def test_no_summary_of_a_command_is_cut(commands):
    groups = {name.rpartition(" ")[0] for name in commands}
    assert groups >= {"ups", "ups cache", "ups runs", "ups vast"}
    for group in groups:
        shown = lines_of_help(group)
        listed = [line for line in shown[shown.index("Commands:") + 1 :] if line]
        assert listed
        assert [line for line in listed if line.endswith("...")] == []


def test_the_help_of_a_command_begins_with_its_example_in_one_line(commands):
    for name, command in commands.items():
        shown = lines_of_help(name)
        after_usage = shown[shown.index("") + 1 :]
        assert after_usage[:2] == [f"  {command.epilog}", ""]
        assert command.help.startswith(after_usage[2].strip())
