//! The main tests on systemd 252.

use crate::machine::Debian::Bookworm;
use crate::{
    boot_order, containers, hooks, join, journal, key_file, power_cut, running, sandbox, staying,
};

macro_rules! on_bookworm {
    ($($name:ident: $test:path;)*) => {$(
        #[test]
        fn $name() {
            $test(Bookworm);
        }
    )*};
}

on_bookworm! {
    a_first_boot_joins_and_a_consumer_finds_the_addresses_in_place: join::first_boot;
    later_boots_need_no_auth_key: join::later_boots;
    a_control_server_that_is_down_holds_up_no_boot: boot_order::holds_up_no_boot;
    a_slow_secret_service_that_nothing_else_waits_for_is_waited_for: boot_order::slow_secret_service;
    a_cloud_init_that_hangs_holds_up_no_boot: boot_order::hanging_cloud_init;
    the_example_hooks_run_when_the_machine_is_connected_and_not_before: hooks::run_when_connected;
    without_a_secret_it_tries_again_until_one_comes: key_file::no_secret;
    a_secret_that_cannot_be_used_is_final: key_file::unusable_secret;
    a_refused_key_is_final_until_a_new_one_is_there_and_started_with: key_file::refused_key;
    a_key_in_a_home_or_a_folder_for_temporary_files_is_found_also_by_a_link: key_file::everywhere;
    a_join_can_be_asked_for_by_its_fields: journal::joined;
    the_last_words_are_the_units_even_if_the_journal_is_late: journal::late_journal;
    a_power_cut_before_the_answer_loses_no_setting_and_the_key_is_used_once: power_cut::before_the_answer;
    a_power_cut_between_the_answer_and_the_put_back_loses_no_setting_and_sends_no_key_again: power_cut::after_the_answer;
    in_a_container_without_namespaces_systemd_does_without_them_by_itself: containers::no_namespaces;
    in_a_user_namespace_the_sandbox_holds_and_a_command_from_outside_is_run: containers::user_namespace;
    it_follows_a_tailscaled_that_is_restarted: running::daemon_restarts;
    a_machine_whose_node_key_expires_while_it_runs_is_back_by_itself: staying::expiry;
    it_can_write_its_state_and_change_nothing_else: sandbox::only_state_to_write;
    systemd_finds_no_fault_with_the_unit_and_little_exposure: sandbox::unit_is_sound;
}
