use super::command::{candidates, variable};
use super::root::hosts_text;

#[test]
fn a_program_is_looked_up_in_the_path() {
    assert_eq!(candidates("ls", "/bin::/usr/bin"), ["/bin/ls", "/usr/bin/ls"]);
    assert_eq!(candidates("./ls", "/bin"), ["./ls"]);
    assert_eq!(candidates("/x/ls", "/bin"), ["/x/ls"]);
    assert_eq!(candidates("ls", ""), Vec::<String>::new());
}

#[test]
fn the_last_value_of_a_variable_counts() {
    let environment = ["PATH=/a", "NOT_PATH=/b", "PATH=/c=d"].map(str::to_owned);
    assert_eq!(variable(&environment, "PATH"), Some("/c=d"));
    assert_eq!(variable(&environment, "HOME"), None);
}

#[test]
fn a_task_finds_its_own_name() {
    let text = hosts_text("web", &["10.0.0.3/24".parse().unwrap(), "10.0.1.9/24".parse().unwrap()]);
    assert!(text.ends_with("10.0.0.3\tweb\n10.0.1.9\tweb\n") && text.starts_with("127.0.0.1\tlocalhost\n"));
}
