"""Each promise of the README and of docs has tests that check it, which are named here beside the promise.

A sentence of a page counts as covered if it contains a fragment of PROMISES, whose tests check it; of MEASURED,
whose figures the named benchmark prints; or of NO_PROMISE: sentences that point elsewhere, or state a fact that does
not depend on this package. UNTESTED are promises without a test, which are debts. A table is one sentence, which its
header covers. A fragment may occur on several pages. Whoever changes a sentence changes its fragment here.
"""

import ast
import errno
import fcntl
import functools
import logging
import re
from pathlib import Path

import numpy as np
import pytest

import liver_dask as ld
from helpers.archive import SHAPE
from helpers.paths import ROOT
from liver_dask.demo import ArchiveServer

PROMISES = {
    # what it is
    "as one lazy, labelled": ["test_dataset::test_the_default_archive_opens_at_once_without_a_request"],
    "Opening it costs nothing": [
        "test_dataset::test_opening_asks_the_server_nothing",
        "test_dataset::test_opening_is_quick",
    ],
    "Reading a part fetches only the bytes that hold that part": [
        "test_dataset::test_a_window_fetches_its_strips_and_the_index_and_nothing_else",
        "real/test_real_size::test_a_window_costs_its_strips_and_the_index",
    ],
    "store that any Zarr reader opens": ["test_zarr_export::test_every_reader_gets_the_voxels_of_the_box"],
    "so it needs no data": ["test_release::test_the_demo_shows_and_checks"],
    "runs all tests, including the checks of style and types": [
        "test_project::test_ci_runs_the_readmes_own_test_command",
        "test_project::test_style_and_types",
    ],
    "conda env create": ["test_project::test_environment_yml_is_in_step_with_pyproject"],
    # object storage
    "object by object, it is the store of a folder": [
        "test_object_storage::test_a_store_is_that_of_a_folder",
        "test_object_storage::test_levels_and_labels_are_those_of_a_folder",
    ],
    "Workers write it by themselves and share no disk": ["test_object_storage::test_workers_that_share_no_disk"],
    "shards are joined from these within the storage": [
        "test_object_storage::test_a_store_is_that_of_a_folder",
        "test_storage::test_parts_are_what_s3_accepts",
    ],
    "or the environment, or files, as for s3fs": ["test_object_storage::test_the_commands_take_addresses"],
    "and the commands take such addresses": ["test_object_storage::test_the_commands_take_addresses"],
    "After a kill the same call resumes": [
        "test_object_storage::test_killed_at_some_request",
        "test_object_storage::test_killed_at_any_request",
    ],
    "by a claim that it renews": [
        "test_object_storage::test_a_second_writer_is_refused",
        "test_object_storage::test_a_stale_claim_is_taken_over",
    ],
    "its metadata come last": ["test_object_storage::test_an_unfinished_store_is_not_taken_for_data"],
    "Credentials are sent to the workers, and never shown or stored": [
        "test_object_storage::test_a_store_is_that_of_a_folder",
        "test_object_storage::test_credentials_that_end_are_one_sentence_and_nothing_is_lost",
        "test_storage::test_errors_of_a_storage_are_one_sentence_without_a_secret",
    ],
    "gives up uploads that were never completed": ["test_object_storage::test_what_is_left_is_cleaned"],
    "cannot join ranges": ["test_storage::test_a_file_is_joined_from_others"],
    # look
    "no request: 1 TB of voxels, lazily": ["test_dataset::test_the_default_archive_opens_at_once_without_a_request"],
    "still no request": ["test_dataset::test_opening_asks_the_server_nothing"],
    "of 128 strips, and the strip index once": ["test_byteranges::test_a_window_fetches_the_beginnings_of_its_strips"],
    "a whole slice from every 20th row": ["test_dataset::test_a_stride_fetches_only_the_strips_it_needs"],
    "a mask is fetched down to its last row": ["test_dataset::test_a_mask_is_fetched_no_further_than_its_last_row"],
    "keep their values in a crop": ["test_zarr_export::test_open_zarr_gives_the_dataset_back"],
    "mention six more classes": ["test_bad_input::test_a_missing_class_lists_the_folders_that_are_there"],
    "The source can be any address": ["test_dataset::test_the_same_voxels_from_any_file_system"],
    "across all slices: one row of each": [
        "test_directory::test_a_cross_section_fetches_only_the_entries_that_it_needs",
        "real/test_real_size::test_a_cross_section_of_all_slices",
    ],
    "at points (DataArrays of one dim)": [
        "test_points::test_points_fetch_their_strips_and_no_others",
        "test_points::test_each_strip_of_many_points_is_fetched_once",
        "test_points::test_xarrays_ways_to_points",
        "real/test_real_size::test_points_cost_their_strips",
    ],
    "an xarray engine": ["test_dataset::test_the_engine_gives_the_same_dataset"],
    "has the same dask arrays, and without `chunks`": [
        "test_dataset::test_the_engines_dask_arrays_are_those_of_open",
        "test_dataset::test_any_chain_of_indexes_fetches_only_what_is_left",
    ],
    "gives the smaller copies": ["test_pyramid::test_each_level_is_the_one_below_as_tensorstore_halves_it"],
    "all rows of a block are read": ["test_dataset::test_other_chunks_are_whole_rows_all_the_same"],
    "Plain Zarr readers read a lost shard file as zeros": ["test_pictures::test_a_snapshot_from_the_shell"],
    "pictures of a path and `verify` report it": ["test_pictures::test_a_snapshot_from_the_shell"],
    "reads the box around all of its points": [
        "test_points::test_points_near_each_other_are_interpolated_from_what_is_around_them"
    ],
    "a picture: raw with the masks over it in colour": [
        "test_pictures::test_the_overlay_is_on_the_voxels_that_it_marks"
    ],
    "the whole slice from every 20th row and column": ["test_pictures::test_a_far_view_costs_a_few_rows"],
    "the same box as to_zarr's, lazily": ["test_pictures::test_the_accessor_does_what_the_functions_do"],
    "the labelled fraction of each slice": ["test_pictures::test_the_accessor_does_what_the_functions_do"],
    "saves such a picture": ["test_pictures::test_a_snapshot_from_the_shell"],
    "drag it, zoom with the wheel, type a place, measure": [
        "test_slicer::test_a_ruler_measures",
        "test_slicer::test_the_window_shows_the_source",
        "test_slicer::test_the_mouse_drags_zooms_and_tells",
        "test_slicer::test_a_place_can_be_typed",
        "test_slicer::test_a_toggled_mask_fetches_nothing_else_and_a_known_one_nothing",
        "real/test_browser::test_in_jupyterlab",
    ],
    "or ld.view(": ["test_slicer::test_the_window_shows_the_source"],
    "first coarse, then sharp": ["test_slicer::test_a_coarse_picture_comes_first_and_costs_little"],
    "cancels reads that are no longer needed": ["test_slicer::test_what_is_no_longer_looked_at_is_given_up"],
    "The slices before and after are read meanwhile": ["test_slicer::test_the_slices_beside_are_read_ahead"],
    "each row that is shown has its columns averaged": [
        "test_columns::test_columns_of_images_are_averaged",
        "test_slicer::test_the_window_shows_the_source",
    ],
    "is told with the voxels that it stands for": [
        "test_slicer::test_the_value_under_the_mouse_is_of_the_voxels_that_are_named"
    ],
    # in any viewer
    "the archive; or a store, or --archive NAME": ["test_server::test_from_the_shell"],
    "serves the volume to neuroglancer": [
        "test_server::test_every_voxel_comes_over_http",
        "test_dataset_store::test_opening_costs_nothing_and_a_chunk_its_rows",
        "real/test_viewers::test_neuroglancer_shows_an_archive_that_was_not_downloaded",
    ],
    "prints a link that opens neuroglancer": [
        "test_server::test_the_link_says_what_neuroglancer_shows",
        "test_server::test_from_the_shell",
    ],
    "any Dataset, whole, cropped or computed": ["test_dataset_store::test_other_datasets"],
    "the same in this process": ["test_dataset_store::test_every_voxel_of_every_scale"],
    "The first scale has the voxels themselves": ["test_dataset_store::test_every_voxel_of_every_scale"],
    "The next have each second row": ["test_dataset_store::test_every_voxel_of_every_scale"],
    "The link shows slices": ["test_server::test_the_link_says_what_neuroglancer_shows"],
    "is served as the files that it has": ["test_server::test_a_store_is_served_as_the_files_that_it_has"],
    "if they know the token in the path": ["test_server::test_a_token_is_needed_where_others_can_ask"],
    "for a neuroglancer of your own": ["test_server::test_the_link_says_what_neuroglancer_shows"],
    "reads that nobody waits for are cancelled": [
        "test_server::test_who_hangs_up_stops_the_transfer",
        "test_server::test_the_next_slice_is_read_ahead",
    ],
    "napari: `napari --plugin napari-ome-zarr http": ["real/test_viewers::test_napari_reads_what_is_served"],
    "to anyone who has the address with its token": [
        "test_browser_server::test_with_the_token_there_is_a_page_and_its_kernel",
        "test_browser_server::test_without_the_token_there_is_nothing",
        "real/test_browser::test_without_a_notebook",
    ],
    "Pictures and the slicer need": ["test_bad_input::test_without_an_extra_one_sentence_says_what_to_install"],
    "run on made-up data, and each says what to change": [
        f"test_notebooks::test_{name}" for name in ("looking", "keeping", "measuring", "training_runs_and_learns")
    ],
    "So there is no default": ["test_dataset::test_the_voxel_size_is_what_was_given_or_said_to_be_unknown"],
    # keep
    "x, y, z: min, max": ["test_zarr_export::test_every_reader_gets_the_voxels_of_the_box"],
    "the same Dataset": ["test_zarr_export::test_open_zarr_gives_the_dataset_back"],
    "The same with the names of torch_em: `ld.get": ["test_zarr_export::test_a_second_call_makes_no_request"],
    "until it is complete": ["test_resume::test_killed_in_any_order_at_any_step_the_store_is_the_same"],
    "the same call resumes from what was finished": [
        "test_resume::test_after_a_kill_only_what_was_in_flight_is_fetched_again",
        "test_zarr_export::test_a_failure_keeps_what_is_finished_and_the_next_call_fetches_the_rest",
    ],
    "Memory is bounded by regions": ["test_zarr_export::test_memory_is_bounded_by_what_is_projected_not_by_the_box"],
    "every byte against recorded checksums": [
        "test_verify::test_any_changed_byte_is_found",
        "test_verify::test_sampling_looks_at_the_edges_and_at_every_shard",
    ],
    "every voxel": ["test_verify::test_a_good_store_passes"],
    "Each chunk carries a checksum": [
        "test_checksums::test_a_changed_bit_is_an_error_for_every_reader",
        "test_checksums::test_no_plane_of_a_damaged_chunk_is_decoded",
    ],
    "`ds` has the variables": ["test_dataset::test_the_default_archive_opens_at_once_without_a_request"],
    "What you add (attributes, arrays, a pyramid) is not damage": [
        "test_damage::test_what_was_added_is_no_damage",
        "test_damage::test_a_source_that_changed_is_reported_as_such",
    ],
    "A value that does not fit the described dtype": [
        "test_tiff_segments::test_a_value_that_no_voxel_can_hold",
        "test_description::test_files_of_another_dtype_are_reported_where_they_are_read",
    ],
    "resumes, returns and verifies the same store": [
        "test_identity::test_a_store_is_returned_wherever_its_archive_is_now",
        "test_identity::test_a_store_goes_on_at_another_address",
        "test_identity::test_an_archive_of_the_same_name_and_other_files_is_refused",
    ],
    "still open, train and verify": [
        "test_formats::test_stores_of_format_3_open_train_and_verify",
        "test_formats::test_what_format_3_lacks_is_said",
    ],
    "A changed byte is found wherever it is": [
        "test_damage::test_a_flipped_byte_of_any_small_file_is_found_or_harmless",
        "test_damage::test_what_was_added_is_no_damage",
        "test_damage::test_a_source_that_changed_is_reported_as_such",
    ],
    "To repair a damaged store": ["test_verify::test_a_flipped_byte_is_one_line_and_what_to_do"],
    "is shown before any request is sent to it": [
        "test_untrusted::test_the_recorded_address_is_reported_before_it_is_asked",
        "test_untrusted::test_another_address_of_the_archive_can_be_named",
        "test_untrusted::test_the_command_takes_a_source",
    ],
    "What nearly all regions need is computed once": ["test_computed::test_what_is_fetched_is_what_the_plan_says"],
    "follows from the graph": [
        "test_computed::test_what_is_fetched_is_what_the_plan_says",
        "test_computed::test_any_regions_of_any_graph_are_right_and_read_as_often_as_planned",
        "test_computed::test_what_would_be_fetched_too_often_is_refused_unless_allowed",
    ],
    # open it elsewhere
    "Python: `zarr.open_group(": [
        "test_server::test_every_voxel_comes_over_http",
        "real/test_viewers::test_napari_reads_what_is_served",
    ],
    "differs from its mask is noted": ["test_damage::test_a_label_that_is_no_copy_of_its_mask_is_reported"],
    "can also be seen from the side": [
        "test_slicer::test_other_planes_show_the_source",
        "test_slicer::test_voxels_are_as_high_as_they_are_from_the_side",
        "test_slicer::test_an_archive_of_many_slices_is_not_seen_from_the_side",
    ],
    "says how large the voxels of a finished store are": [
        "test_annotate::test_an_annotated_store_is_as_if_the_size_had_been_known",
        "test_annotate::test_on_the_command_line",
    ],
    "or download ... --pyramid": ["test_pyramid::test_what_reads_the_store_reads_it_as_before"],
    "each half the size of the one before": [
        "test_pyramid::test_each_level_is_the_one_below_as_tensorstore_halves_it",
        "test_pyramid::test_the_metadata_are_ome_zarr",
    ],
    "and training work as before": ["test_pyramid::test_what_reads_the_store_reads_it_as_before"],
    "labels of your own are left untouched": [
        "test_pyramid::test_a_users_own_labels_and_settings_stay",
        "test_pyramid::test_a_label_that_a_user_made_or_changed_is_never_replaced",
        "test_pyramid::test_labels_take_no_room_and_copies_do_where_there_are_no_links",
    ],
    "Otherwise a voxel has size 1": ["test_pyramid::test_an_unknown_voxel_size_is_not_guessed"],
    "scales are in nm and z is halved": [
        "test_pyramid::test_the_metadata_are_ome_zarr",
        "test_pyramid::test_an_unknown_voxel_size_is_not_guessed",
    ],
    "or `download --voxel-size Z Y X`": ["test_cli::test_the_voxel_size_can_be_given"],
    "napari --plugin napari-ome-zarr": ["real/test_viewers::test_napari_shows_raw_and_labels"],
    "Its reader ignores the offset of a crop": ["real/test_viewers::test_napari_reads_every_voxel_of_every_level"],
    "reads a store from any web server": ["real/test_viewers::test_neuroglancer_shows_raw_and_labels"],
    "have to be set in neuroglancer": ["real/test_viewers::test_neuroglancer_shows_raw_and_labels"],
    # keep all of it
    "this sends no request": ["test_cli::test_the_plan_on_the_page_is_what_the_command_prints"],
    "--full --workers 8": [
        "test_cli::test_a_full_volume_by_processes_of_this_machine",
        "real/test_slurm::test_a_full_volume_as_jobs_of_which_one_is_cancelled",
    ],
    "which goes on after its time limit": [
        "test_slurm_page::test_a_job_that_is_cancelled_is_not_started_again",
        "test_slurm_page::test_a_job_is_started_again_after_what_may_pass",
        "test_slurm_page::test_the_driver_goes_on_after_a_signal",
        "real/test_slurm::test_the_scripts_of_the_page_go_on_after_the_time_limit",
        "real/test_slurm::test_jobs_of_one_node_go_on_one_after_another",
    ],
    "a job that is cancelled is replaced": ["real/test_slurm::test_a_full_volume_as_jobs_of_which_one_is_cancelled"],
    "fetched and decoded once": ["test_cluster::test_a_cluster_writes_the_same_bytes_and_asks_for_none_twice"],
    "that is too small is refused": ["test_cluster::test_refused_with_numbers_before_anything_is_written"],
    "All workers together": [
        "test_cluster::test_all_workers_together_keep_to_one_limit",
        "test_shares::test_an_export_and_lazy_reads_share_them",
        "test_dask_citizen::test_two_calls_on_one_cluster_keep_to_one_limit",
    ],
    "is used without `client=` too": ["test_dask_citizen::test_the_client_in_force_is_used_as_by_all_of_dask"],
    "may adapt from zero workers": [
        "test_dask_citizen::test_a_cluster_that_adapts_grows_while_it_writes",
        "test_dask_citizen::test_a_task_of_a_cluster_of_one_thread_may_write_a_store",
        "test_dask_citizen::test_what_a_cluster_holds_can_be_kept",
    ],
    "may be killed at any moment": [
        "test_cluster::test_a_killed_worker_costs_what_it_was_at",
        "test_cluster::test_a_killed_driver_leaves_work_that_the_same_call_goes_on_with",
        "test_cluster::test_a_killed_scheduler_is_reported_and_another_cluster_goes_on",
    ],
    "that were in progress are lost": ["test_resume::test_after_a_kill_only_what_was_in_flight_is_fetched_again"],
    "writes everything it can and lists the rest": [
        "test_resume::test_a_slice_that_cannot_be_read_costs_its_own_regions"
    ],
    "All machines must see the folder": ["test_cluster::test_a_folder_that_workers_do_not_see_is_refused"],
    "on others it is only logged": [
        "test_zarr_export::test_of_two_writers_at_once_the_second_is_refused",
        "test_readme::test_a_file_system_without_locks_is_only_logged",
    ],
    # long runs
    "and a second Ctrl-C stops now": [
        "test_progress::test_ctrl_c_finishes_the_regions_under_way",
        "test_progress::test_a_second_ctrl_c_stops_now",
    ],
    "also while it is written: how far it is": [
        "test_progress::test_info_says_how_far_an_unfinished_store_is_and_what_failed"
    ],
    "`--label none` keeps raw alone": ["test_cli::test_labels_are_chosen_in_one_way_and_kept_in_one_order"],
    "Variables have the order of the description": [
        "test_cli::test_labels_are_chosen_in_one_way_and_kept_in_one_order"
    ],
    "A terminal and Jupyter show a bar": ["test_progress::test_a_bar_begins_where_the_last_run_ended"],
    "Where standard error is no terminal": [
        "test_code_blocks::test_the_lines_of_a_run_are_what_it_prints",
        "test_progress::test_lines_come_each_minute_at_first_then_fewer_and_one_at_the_end",
    ],
    "There is one line a minute at first": [
        "test_progress::test_lines_come_each_minute_at_first_then_fewer_and_one_at_the_end"
    ],
    "The rate is that of the last ten minutes": ["test_progress::test_the_rate_is_that_of_the_last_minutes"],
    "says first what share is there": ["test_progress::test_what_is_there_is_said_and_is_no_part_of_the_rate"],
    'lines end with "waiting for workers"': ["test_progress::test_waiting_for_workers_is_said"],
    'lines end with "waiting for the archive"': ["test_outage::test_waiting_for_the_archive_is_said"],
    "waits for as long as it has gone well": [
        "test_outage::test_an_outage_is_borne_for_as_long_as_the_run_has_gone_well",
        "test_outage::test_a_run_goes_on_after_an_outage",
    ],
    "Then it ends with an error, and the same call resumes": [
        "test_outage::test_an_archive_that_stays_away_is_an_error",
    ],
    "tells about a store that is not finished": [
        "test_progress::test_info_says_how_far_an_unfinished_store_is_and_what_failed"
    ],
    "the rate and the time left are added": ["test_progress::test_info_of_a_store_that_is_written_has_rate_and_time"],
    "are listed with the reasons": ["test_progress::test_info_says_how_far_an_unfinished_store_is_and_what_failed"],
    "so another machine that sees it can ask": [
        "test_progress::test_info_of_a_store_that_is_written_has_rate_and_time",
        "test_object_storage::test_what_is_left_is_cleaned",
    ],
    "The first Ctrl-C is answered at once": ["test_progress::test_ctrl_c_finishes_the_regions_under_way"],
    "The second Ctrl-C stops now": [
        "test_progress::test_a_second_ctrl_c_stops_now",
        "test_cluster::test_ctrl_c_stops_and_says_how_to_go_on",
    ],
    "What is finished is kept, and the same call": [
        "test_progress::test_ctrl_c_finishes_the_regions_under_way",
        "test_cluster::test_ctrl_c_stops_and_says_how_to_go_on",
    ],
    "what a server costs that answers one range": ["test_estimate::test_without_a_look_both_kinds_of_servers_are_told"],
    "looks at three slices first": ["test_estimate::test_without_a_look_both_kinds_of_servers_are_told"],
    "are within 15 % of what it says then": ["test_estimate::test_it_costs_what_was_said_after_a_look"],
    "the plan has the size of the smaller copies": ["test_estimate::test_a_pyramid_is_in_the_plan_and_must_have_room"],
    "The room for them is checked before": ["test_estimate::test_a_pyramid_is_in_the_plan_and_must_have_room"],
    # as jobs of Slurm
    "in one call that goes on after time limits, lost nodes and kills": [
        "real/test_slurm::test_the_scripts_of_the_page_go_on_after_the_time_limit",
        "test_cluster::test_a_killed_worker_costs_what_it_was_at",
        "test_cluster::test_a_killed_driver_leaves_work_that_the_same_call_goes_on_with",
    ],
    "There are two ways, and both write the same store": [
        "real/test_slurm::test_the_scripts_of_the_page_go_on_after_the_time_limit",
        "real/test_slurm::test_jobs_of_one_node_go_on_one_after_another",
    ],
    "and submits the jobs of its workers itself": [
        "real/test_slurm::test_the_scripts_of_the_page_go_on_after_the_time_limit"
    ],
    "workers may come and go": [
        "test_dask_citizen::test_a_cluster_that_adapts_grows_while_it_writes",
        "real/test_slurm::test_a_full_volume_as_jobs_of_which_one_is_cancelled",
    ],
    "everything in one job, without `dask-jobqueue`": [
        "real/test_slurm::test_jobs_of_one_node_go_on_one_after_another"
    ],
    "ask for the address of a proxy": ["test_proxies::test_the_proxy_is_asked"],
    "Put the two files below into one folder": ["test_slurm_page::test_the_scripts_are_valid"],
    "can also be given by the environment": ["test_slurm_page::test_the_script_hands_its_settings_to_the_driver"],
    "| what happens | what follows |": [
        "test_slurm_page::test_a_job_that_is_cancelled_is_not_started_again",
        "test_slurm_page::test_a_job_is_started_again_after_what_may_pass",
        "test_slurm_page::test_the_driver_goes_on_after_a_signal",
        "test_slurm_page::test_the_driver_waits_for_what_is_under_way_only_for_a_while",
        "test_slurm_page::test_the_driver_ends_if_slurm_refuses_its_workers",
        "test_cluster::test_a_killed_worker_costs_what_it_was_at",
    ],
    "for what is under way, before Slurm kills this job": [
        "test_slurm_page::test_the_driver_waits_for_what_is_under_way_only_for_a_while"
    ],
    "A requeued job keeps its number and its log": [
        "real/test_slurm::test_the_scripts_of_the_page_go_on_after_the_time_limit"
    ],
    "After 20 restarts it stays ended": ["test_slurm_page::test_a_job_is_started_again_after_what_may_pass"],
    "goes on, or says that all is there": ["real/test_slurm::test_the_scripts_of_the_page_go_on_after_the_time_limit"],
    "Two jobs never write the same store": ["test_zarr_export::test_of_two_writers_at_once_the_second_is_refused"],
    "each job goes on where the one before has": ["real/test_slurm::test_jobs_of_one_node_go_on_one_after_another"],
    "find the store complete, verify it and end": [
        "test_cli::test_download_and_info",
        "real/test_slurm::test_the_scripts_of_the_page_go_on_after_the_time_limit",
    ],
    "| | full volume (all tissue": ["test_slurm_page::test_what_to_expect_is_what_the_plan_says"],
    "on any file system that all nodes share": ["test_cluster::test_a_folder_that_workers_do_not_see_is_refused"],
    "about a thousand large files": ["test_slurm_page::test_what_to_expect_is_what_the_plan_says"],
    "without `flock` is accepted with a warning": ["test_readme::test_a_file_system_without_locks_is_only_logged"],
    "with the time of each start and the reason of its end": [
        "test_slurm_page::test_a_job_is_started_again_after_what_may_pass",
        "test_slurm_page::test_the_driver_goes_on_after_a_signal",
    ],
    "If Slurm refuses such jobs": ["test_slurm_page::test_the_driver_ends_if_slurm_refuses_its_workers"],
    "one line a minute, later fewer: share": [
        "test_progress::test_lines_come_each_minute_at_first_then_fewer_and_one_at_the_end"
    ],
    "of an unfinished store: what is left": ["test_identity::test_a_plan_refuses_what_the_call_would_refuse"],
    "also of an unfinished store: share, rate": [
        "test_progress::test_info_says_how_far_an_unfinished_store_is_and_what_failed"
    ],
    "what killed downloads left beside": ["test_object_storage::test_what_is_left_is_cleaned"],
    "gives up an unfinished store": ["test_object_storage::test_what_is_left_is_cleaned"],
    # train
    "instead of its own module": ["test_training::test_torch_ems_own_options_mean_what_they_mean_there"],
    "a table in the store tells where they cannot be": [
        "test_training::test_every_patch_has_the_foreground_that_was_asked_for",
        "test_tables::test_the_most_of_a_patch_is_what_its_chunks_can_hold",
    ],
    "have a tenth each": ["test_splits::test_a_tenth_of_any_ten_blocks_is_for_validation_and_a_tenth_for_test"],
    "Masks are 0 and 1": [
        "test_training::test_labels_are_what_a_loss_takes_unless_a_transform_says_otherwise",
        "test_training::test_several_labels_are_channels",
    ],
    "and of the DataLoader are accepted": ["test_training::test_torch_ems_own_options_mean_what_they_mean_there"],
    "is drawn with the same chance, and no other": [
        "test_draws::test_every_position_that_qualifies_is_drawn_with_the_same_chance",
        "test_draws::test_a_box_is_read_alike_from_both_ends_of_the_tissue",
    ],
    "draws patches with labels whose": ["test_training::test_patches_are_of_tissue_and_of_what_is_labelled"],
    "A split depends on the volume alone": ["test_draws::test_no_voxel_of_validation_is_in_training"],
    "keep a margin of 8 slices": ["test_splits::test_no_voxel_is_in_two_splits"],
    "gives smaller blocks": ["test_training::test_a_split_keeps_to_its_blocks_and_says_so"],
    "`dataset.split` tells the split": [
        "test_training::test_a_split_keeps_to_its_blocks_and_says_so",
        "test_training::test_a_checkpoint_of_torch_ems_trainer_keeps_split_seed_and_position",
    ],
    "follow from the seed and its number alone": [
        "test_draws::test_a_seed_is_enough_in_any_dataloader",
        "test_draws::test_the_seed_fixes_what_a_users_transforms_draw",
        "test_training::test_a_seed_gives_the_same_patches_and_no_worker_anothers",
        "test_workers::test_threads_processes_and_none_give_the_same_stream",
    ],
    "puts each of several labels at the centre": [
        "test_centres::test_all_allowed_positions_with_such_a_centre_have_the_same_chance",
        "test_centres::test_centres_have_their_shares_in_every_box",
    ],
    "adds context: an item is then raw, labels": [
        "test_context::test_items_have_contexts_of_the_voxels_of_the_source",
        "test_context::test_with_a_pyramid_few_bytes_are_read_for_a_context",
    ],
    "Workers are threads": [
        "test_workers::test_own_transforms_are_on_processes_unless_threads_are_asked_for",
        "test_workers::test_threads_processes_and_none_give_the_same_stream",
    ],
    "They are processes if transforms": [
        "test_workers::test_own_transforms_are_on_processes_unless_threads_are_asked_for"
    ],
    "Boxes that fit into memory": ["test_workers::test_boxes_that_fit_are_decoded_once_and_others_without_a_cache"],
    "draws eight patches from the": [
        "test_reuse::test_positions_beside_uniform_ones_are_uniform",
        "test_reuse::test_chunks_are_decoded_rarely_and_no_patch_comes_twice",
    ],
    "Lightning keeps the state in its checkpoints": [
        "test_loops::test_lightning_goes_on_within_an_epoch",
        "test_loops::test_a_plain_loop_goes_on_from_a_checkpoint",
    ],
    "continue the stream exactly": ["test_draws::test_an_interrupted_stream_goes_on_exactly"],
    "of torch.distributed have different patches": ["test_draws::test_ranks_have_disjoint_streams"],
    "Several boxes have the shares": ["test_draws::test_boxes_have_the_share_that_was_asked_for"],
    "The default transforms are torch_em's": ["test_draws::test_the_default_transforms_are_torch_ems_in_distribution"],
    "channels, z, y, x": ["test_tiles::test_a_network_that_changes_nothing_gives_the_box"],
    "comes from the inner part of one patch": ["test_tiles::test_each_voxel_is_in_one_inner_part_with_its_halo"],
    "need every voxel once": ["test_tiles::test_each_voxel_is_in_one_inner_part_with_its_halo"],
    "With a halo as large as the receptive field": [
        "test_tiles::test_a_halo_of_the_receptive_field_gives_the_same_as_the_whole_box"
    ],
    "holds one batch": [
        "test_tiles::test_predictions_are_written_into_out",
        "test_tiles::test_one_batch_at_a_time_is_held",
    ],
    "tiles are a validation set": ["test_tiles::test_tiles_are_a_validation_set_of_torch_ems_trainer"],
    "keeps the state of the loader in its checkpoints": ["test_loops::test_a_plain_loop_goes_on_from_a_checkpoint"],
    "take the loader as it is": [
        "test_loops::test_lightning_goes_on_within_an_epoch",
        "test_training::test_a_checkpoint_of_torch_ems_trainer_keeps_split_seed_and_position",
    ],
    "With several GPUs, create it when": ["test_loops::test_two_ranks_of_lightning_have_other_patches"],
    "reads patches directly from the archive": ["test_training::test_patches_straight_from_the_archive"],
    "malloc of your own process is not tuned": [
        "test_malloc::test_a_users_process_is_left_as_it_is",
        "test_malloc::test_it_is_changed_where_that_is_configured",
        "test_malloc::test_the_command_and_dasks_workers_are_our_own",
    ],
    # predict and measure
    "gives a model blocks with a halo, mirrored at the ends": ["test_predict::test_blocks_do_not_matter"],
    "the blocks do not matter": [
        "test_predict::test_blocks_do_not_matter",
        "test_models::test_a_network_is_that_of_the_whole_volume",
    ],
    "Probabilities are kept as 0 to 255": [
        "test_predict::test_every_block_has_the_same_shape_and_a_model_may_have_channels",
        "test_predict::test_what_is_empty_is_not_predicted",
    ],
    "needs a Sigmoid": [
        "test_predict::test_logits_are_noticed_once",
        "test_cli_analysis::test_logits_are_one_line_on_stderr",
    ],
    "cut to 0 to 1, and a warning says so": [
        "test_predict::test_logits_are_noticed_once",
        "test_cli_analysis::test_logits_are_one_line_on_stderr",
    ],
    "Standardise as in training": [
        "test_cli_analysis::test_a_model_of_standardised_voxels_gets_them_by_the_documented_command"
    ],
    "take those of the whole store": [
        "test_predict::test_statistics_are_those_of_the_voxels",
        "test_cli_analysis::test_a_model_of_standardised_voxels_gets_them_by_the_documented_command",
    ],
    "a model gets the grey values as they are": [
        "test_predict::test_voxels_are_standardised",
        "test_cli_analysis::test_a_model_of_standardised_voxels_gets_them_by_the_documented_command",
    ],
    "Each process loads the model once": ["test_predict::test_workers_load_a_model_once_and_give_the_same"],
    "threshold=0.5` makes a mask of them": ["test_predict::test_a_threshold_makes_a_mask"],
    "a prediction of the whole liver is there at": [
        "test_predict::test_a_prediction_of_the_whole_liver_costs_nothing",
        "test_predict::test_only_what_is_needed_is_predicted",
    ],
    "A store says by which model (weights, attributes and": [
        "test_models::test_what_is_no_weight_counts_too",
        "test_models::test_the_code_of_a_function_counts",
        "test_digests::test_another_value_is_another_model",
        "test_predict::test_other_voxels_are_never_taken_for_the_same",
        "test_predict::test_a_prediction_is_kept_beside_raw",
        "test_predict::test_how_a_model_is_run_is_part_of_a_store_but_not_where",
        "test_predict::test_after_a_kill_nothing_finished_is_predicted_again",
        "test_models::test_a_digest_is_that_of_the_weights",
        "test_add_variables::test_the_record_says_by_what_it_was_made",
    ],
    "Installed packages count by name and version": ["test_digests::test_what_is_installed_counts_by_its_version"],
    "What a model reads when it runs (files": ["test_digests::test_what_is_read_when_it_runs_does_not_count"],
    "What cannot be compared, such as an open file, is another": [
        "test_digests::test_what_cannot_be_compared_is_another"
    ],
    "is fetched once for both": ["test_predict::test_raw_is_fetched_once_for_itself_and_the_model"],
    "writes as `to_zarr` does, beside the store until": [
        "test_add_variables::test_they_are_as_if_the_store_had_been_written_with_them",
        "test_add_variables::test_killed_at_any_step_the_next_call_finishes",
    ],
    "the same call does nothing the next time": [
        "test_add_variables::test_the_same_call_does_nothing_and_so_does_that_of_the_store"
    ],
    "compares computed variables with their checksums": ["test_add_variables::test_verify_says_what_it_can_check"],
    "trains for a moment, predicts, scores": ["test_notebooks::test_predicting"],
    "Ctrl-C ends after the regions under way, a second one after the block": [
        "test_progress::test_ctrl_c_finishes_the_regions_under_way",
        "test_predict::test_ctrl_c_ends_after_the_block_that_is_predicted",
    ],
    "into the store; here, or on a cluster": [
        "test_add_variables::test_they_are_as_if_the_store_had_been_written_with_them",
        "test_predict::test_workers_load_a_model_once_and_give_the_same",
    ],
    "or of the archive, as above": ["test_predict::test_a_prediction_is_kept_beside_raw"],
    "or into a new one": ["test_predict::test_a_prediction_is_kept_beside_raw"],
    "Without the last path, the prediction is added": ["test_add_variables::test_from_the_shell"],
    "labels block by block and puts together what goes on": [
        "test_measure::test_it_is_what_is_labelled_in_memory",
        "test_measure::test_a_ring_that_closes_three_blocks_away",
        "test_measure::test_workers_give_the_same",
    ],
    "The same from the shell:": [
        "test_cli::test_download_and_info",
        "test_cli_analysis::test_a_mask_is_measured",
        "test_cli_analysis::test_a_model_is_run",
        "test_pictures::test_a_snapshot_from_the_shell",
    ],
    "a torch.nn.Module, a file, a function": [
        "test_models::test_files_give_the_same",
        "test_models::test_a_checkpoint_of_torch_em",
    ],
    "a pandas.DataFrame, one row an object": ["test_measure::test_it_is_what_is_labelled_in_memory"],
    "reads the mask once now; the numbers lazily": ["test_measure::test_it_is_what_is_labelled_in_memory"],
    # other archives
    "Other archives](.github/docs/archives.md) of slices need only a": [
        "test_description::test_the_command_takes_a_file_that_describes_an_archive"
    ],
    "serve a folder with byte ranges": [
        "test_code_blocks::test_the_code_of_a_page_runs",
    ],
    "on a free port of this machine": ["test_code_blocks::test_the_code_of_a_page_runs"],
    "descriptions by name": ["test_description::test_the_built_in_archives_are_where_they_are"],
    "8-bit raw, and instances of mitochondria": ["test_empiar_12535::test_a_volume_is_read_kept_and_verified"],
    "yours, described in a file": ["test_description::test_the_command_takes_a_file_that_describes_an_archive"],
    "only the needed parts are fetched": [
        "test_hdf5::test_a_window_fetches_its_chunks_and_little_else",
        "test_dialects::test_rows_of_a_strip_that_is_not_compressed_are_read_alone",
    ],
    "A wrong description is one sentence": [
        "test_description::test_a_wrong_variable_is_reported_when_it_is_described",
        "test_description::test_a_wrong_file_is_one_sentence",
        "test_description::test_files_of_another_dtype_are_reported_where_they_are_read",
    ],
    "`first = 1` if files are counted": ["test_description::test_each_dtype_and_kind_is_read_right"],
    "TIFF (one image a file)": ["test_tiff_segments::test_a_stack_is_no_slice"],
    "the commands that read an archive (": [
        "test_cli::test_the_commands_that_read_an_archive_take_it",
        "test_description::test_the_command_takes_a_file_that_describes_an_archive",
    ],
    "Instance labels keep their numbers everywhere": [
        "test_instances::test_a_store_and_its_pyramid_keep_every_number",
        "test_empiar_12535::test_instances_are_trained_on_with_a_label_transform",
    ],
    "is treated as instances if it has": ["test_instances::test_the_attribute_kind_is_a_users_word"],
    "a mask keeps its share of labelled": [
        "test_pyramid::test_masks_keep_their_share_in_every_cell",
        "test_pyramid::test_shares_of_masks_stay_within_two_percent_at_every_level",
    ],
    "instance labels keep the most frequent": ["test_instances::test_the_most_frequent_number_stays"],
    # examine
    "at the address of its description, at another": ["test_doctor::test_the_command"],
    "asks for every file of an archive by its headers": ["test_doctor::test_an_honest_archive_is_as_described"],
    "from which two masks and the end of a file were taken": [
        "test_doctor::test_the_report_on_the_page_is_what_is_printed"
    ],
    "is one sentence with the file": [
        "test_doctor::test_one_file_of_raw_is_of_another_kind",
        "test_doctor::test_one_mask_is_of_another_kind",
        "test_doctor::test_what_is_missing_is_listed",
    ],
    "The exit code is 0 if all is as described": ["test_doctor::test_the_command"],
    "`--json` prints all facts": ["test_doctor::test_the_command"],
    "it takes about 2400 small requests": ["test_doctor::test_an_honest_archive_is_as_described"],
    "and no more after some equal failures": [
        "test_doctor::test_no_more_than_so_many_requests_at_once",
        "test_doctor::test_who_refuses_everything_is_asked_little",
    ],
    "it is seen of every file only whether it is there and how large it is": [
        "test_doctor::test_an_honest_archive_is_as_described"
    ],
    "A file that was cut short is found if": [
        "test_doctor::test_masks_that_were_cut_are_found",
        "test_doctor::test_one_file_of_raw_is_of_another_kind",
    ],
    "Damaged pixels are not seen": ["test_doctor::test_damage_that_only_reading_finds"],
    "reads and decodes N whole slices": [
        "test_doctor::test_damage_that_only_reading_finds",
        "test_doctor::test_one_mask_is_of_another_kind",
    ],
    "`--stalls MINUTES` sends small requests": ["test_doctor::test_stalls_are_counted"],
    "has the real sizes of the files": ["test_doctor::test_facts_make_estimates_exact"],
    "No voxel follows from it": ["test_doctor::test_facts_change_no_voxel"],
    "Facts about another archive, address or shape": ["test_doctor::test_facts_of_something_else_are_refused"],
    # know
    "At most 16 at once from a process": [
        "test_remote::test_no_more_requests_at_once_than_connections",
        "test_dataset::test_options_may_come_from_dask_config",
    ],
    "from all workers of a dask cluster together": [
        "test_shares::test_workers_that_read_lazily_keep_to_one_limit",
        "test_shares::test_a_killed_worker_gives_its_share_back_and_new_ones_get_theirs",
    ],
    "take turns if there are more": ["test_shares::test_workers_take_turns"],
    "for up to 190 ranges of a file": ["test_byteranges::test_merged_ranges_hold_all_that_was_asked_for"],
    "is cancelled, and the missing bytes are requested again": [
        "test_remote::test_a_silent_request_is_given_up_and_asked_again_at_once",
        "test_network::test_a_server_that_takes_its_time_is_waited_for",
        "test_network::test_a_trickle_is_abandoned",
        "test_network::test_a_stream_that_breaks_off_is_continued",
        "test_remote::test_tries_are_bounded_and_the_error_has_the_last_reason",
    ],
    "counts what this process fetches": ["test_network::test_a_trace_counts_what_was_fetched"],
    "up to the last column that is needed": [
        "test_byteranges::test_a_window_fetches_the_beginnings_of_its_strips",
        "test_dataset::test_a_mask_is_fetched_no_further_than_its_last_row",
    ],
    "neighbouring strips are fetched whole": [
        "test_byteranges::test_a_server_that_takes_one_range_a_request_is_asked_so"
    ],
    "16 blocks are read at once": ["test_network::test_a_look_asks_for_raw_and_masks_at_once"],
    "takes precedence over both": ["test_network::test_the_threads_that_were_asked_for_are_used"],
    "name the file, the slice and the rows": ["test_bad_input::test_a_missing_slice_names_file_slice_and_rows"],
    "so that going back costs no request": ["test_readme::test_going_back_costs_no_request"],
    "strip indexes and masks, and up to": [
        "test_dataset::test_a_cache_dir_saves_index_and_masks_for_the_next_process",
        "test_network::test_strips_are_kept_for_other_processes",
        "test_network::test_the_shell_lists_and_empties_a_cache",
    ],
    "one byte is requested of a file": [
        "test_versions::test_what_is_cached_is_checked_by_one_byte_and_once",
        "test_versions::test_a_cached_file_is_of_the_present_version_or_not_used",
    ],
    "another version of it is an error": [
        "test_remote::test_a_file_that_changes_between_two_reads_is_an_error_not_a_mix",
        "test_versions::test_another_dataset_of_the_source_changes_nothing_for_the_first",
        "test_resume::test_a_source_that_changed_between_two_runs_is_refused",
    ],
    "Pickles of the Dataset carry these records": [
        "test_versions::test_two_processes_that_share_a_dataset_see_one_version",
        "test_versions::test_copies_in_a_process_share_what_was_read",
        "test_versions::test_a_file_that_is_older_than_the_dataset_is_read_whatever_the_clocks_say",
    ],
    "that cannot be decoded is fetched again once": [
        "test_network::test_a_changed_byte_that_breaks_a_file_is_fetched_again"
    ],
    "(`persist`) are not checked again": ["test_computed::test_what_a_cluster_keeps_outlives_a_change_of_the_source"],
    "dask takes both for the same": ["test_versions::test_what_was_read_of_files_changes_no_name"],
    "**Missing slices** are an error": ["test_missing::test_without_it_a_missing_slice_is_an_error_that_says_so"],
    "does not exist (404, while its folder does) is zeros": [
        "test_missing::test_missing_slices_are_zeros_where_that_is_asked_for",
        "test_missing::test_what_is_not_surely_missing_is_an_error",
        "test_missing::test_a_store_lists_what_is_missing_and_is_finished",
        "test_missing::test_the_shell_takes_it",
    ],
    "that was begun without it can be resumed": [
        "test_missing::test_a_store_that_was_begun_without_is_finished_with_it"
    ],
    "A byte that changes in transit": [
        "test_bad_input::test_a_changed_byte_of_a_mask_is_noticed",
        "test_dialects::test_a_byte_that_changed_on_its_way_gives_no_pixel",
    ],
    "In raw it is noticed if": [
        "test_network::test_a_changed_byte_costs_no_more_than_its_row",
        "test_lzw::test_a_row_that_gets_another_length_is_noticed",
    ],
    # files that differ from the archive's own
    "is read by whole strips or tiles": [
        "test_tiff_segments::test_types_codecs_and_layouts",
        "test_tiff_segments::test_only_the_touched_tiles_are_fetched_and_it_says_so_once",
        "test_tiff_segments::test_a_value_that_no_voxel_can_hold",
        "test_tiff_segments::test_colours_are_no_grey",
    ],
    "A mask may be any PNG": [
        "test_png_suite::test_every_file_of_the_suite",
        "test_png_suite::test_large_ones_are_decoded_once_and_fetched_once",
    ],
    "replays some thousand": ["test_fuzz::test_damaged_inputs"],
    # secrets and hostile servers
    "is sent only to its host, and is never shown or stored": [
        "test_credentials::test_the_secret_opens_the_archive_and_is_found_nowhere",
        "test_credentials::test_no_error_holds_the_secret",
        "test_credentials::test_a_secret_goes_to_no_other_host",
        "test_credentials::test_netrc_is_looked_at_as_requests_does",
        "test_proxies::test_the_proxy_is_asked",
        "test_proxies::test_some_hosts_are_asked_without_it",
        "test_proxies::test_a_socks_proxy_is_asked",
        "test_proxies::test_certificates_are_those_that_are_set_up",
    ],
    "No more is read than was asked for": [
        "test_answers::test_several_ranges_are_no_more_than_was_asked_for",
        "test_answers::test_no_body_is_read_beyond_what_it_is_for",
        "test_answers::test_a_redirect_is_followed_five_times",
        "test_proxies::test_tls_is_not_left_for_a_redirect",
    ],
    "Ctrl-C stops waiting reads immediately": [
        "test_interrupts::test_ctrl_c_on_a_silent_source_ends_the_process_at_once",
        "test_interrupts::test_an_interrupt_that_falls_into_a_callback_is_not_lost",
    ],
    "`pytest -m real` builds": ["real/test_real_size::test_a_crop_next_to_torch_ems_own_loader"],
    "lazy computing fetches and decodes each mask once": [
        "test_slice_graph::test_workers_together_fetch_each_mask_once",
        "test_slice_graph::test_workers_together_fetch_each_strip_index_once",
    ],
    "Select rows first there": ["test_slice_graph::test_what_is_left_out_is_not_fetched"],
    # the screens of the README
    "| extra | for |": ["test_code_blocks::test_the_extras_are_those_that_are_installed"],
    "This command installs all but training and S3": ["test_code_blocks::test_the_extras_are_those_that_are_installed"],
    "A box is always (x_min": ["test_zarr_export::test_every_reader_gets_the_voxels_of_the_box"],
    "Arrays are always in the order z, y, x": [
        "test_zarr_export::test_every_reader_gets_the_voxels_of_the_box",
        "test_training::test_several_labels_are_channels",
    ],
    "Nothing is downloaded first": ["test_slicer::test_a_coarse_picture_comes_first_and_costs_little"],
    "Chunks are made as they are asked for": ["test_dataset_store::test_opening_costs_nothing_and_a_chunk_its_rows"],
    "With `--workers 4`": ["test_cli::test_a_full_volume_by_processes_of_this_machine"],
    "With `--scheduler tcp://...`": ["test_code_blocks::test_a_scheduler_that_runs"],
    "The whole volume is `--full`": ["test_cli::test_a_full_volume_by_processes_of_this_machine"],
    "A store can lie in S3": ["test_object_storage::test_a_store_is_that_of_a_folder"],
    "of this box, 7.4 GB are": ["test_code_blocks::test_the_box_of_the_training_example_costs_what_is_said"],
    "Later calls use the store": ["test_zarr_export::test_a_second_call_makes_no_request"],
    "tensors (batch, channel, z, y, x) of float32": ["test_code_blocks::test_the_code_of_a_page_runs"],
    "is drawn with the same chance.": ["test_draws::test_every_position_that_qualifies_is_drawn_with_the_same_chance"],
    "The number of workers does not matter": ["test_workers::test_threads_processes_and_none_give_the_same_stream"],
    "Index it and calculate with it": [
        "test_dataset::test_any_chain_of_indexes_fetches_only_what_is_left",
        "test_dataset::test_opening_asks_the_server_nothing",
    ],
    "Voxels are fetched when you call": ["test_dataset::test_opening_asks_the_server_nothing"],
    "no model is run but for the blocks": ["test_predict::test_only_what_is_needed_is_predicted"],
    "Python 3.11 and later is supported": ["test_project::test_the_versions_that_are_stated_are_those_of_pyproject"],
    "to build the reference of all functions": ["test_api::test_the_reference_is_built"],
    # the pages of docs
    "in the same way on a store": [
        "test_slicer::test_the_window_shows_the_source",
        "test_pictures::test_a_snapshot_from_the_shell",
        "test_server::test_a_store_is_served_as_the_files_that_it_has",
    ],
    "a slice, and a window of it": ["test_code_blocks::test_the_code_of_a_page_runs"],
    "a whole slice at a low resolution, as a lazy Dataset": [
        "test_pictures::test_the_accessor_does_what_the_functions_do"
    ],
    "Masks keep their share of labelled voxels.": ["test_columns::test_masks_keep_their_share"],
    "`liver-dask view --neuroglancer` opens it": ["test_server::test_from_the_shell"],
    "Only this machine is answered": ["test_server::test_a_token_is_needed_where_others_can_ask"],
    "When it rests, the next slice is read": ["test_server::test_the_next_slice_is_read_ahead"],
    "It touches no voxel": ["test_annotate::test_an_annotated_store_is_as_if_the_size_had_been_known"],
    "does all of this on made-up data": ["test_notebooks::test_looking"],
    "does this on made-up data": ["test_notebooks::test_keeping"],
    "computes fractions and contacts": ["test_notebooks::test_measuring"],
    "A store is a sharded Zarr v3 group": ["test_zarr_export::test_every_reader_gets_the_voxels_of_the_box"],
    "removes a store that nobody will finish": [
        "test_object_storage::test_what_is_left_is_cleaned",
        "test_add_variables::test_what_an_interrupted_call_left_is_cleaned",
    ],
    "that has changed since is reported as changed": ["test_damage::test_a_source_that_changed_is_reported_as_such"],
    "So a bit that a disk has changed is an error": ["test_checksums::test_a_changed_bit_is_an_error_for_every_reader"],
    "Variables that are computed lazily can be kept": [
        "test_computed::test_any_regions_of_any_graph_are_right_and_read_as_often_as_planned"
    ],
    "In the environment these are": ["test_object_storage::test_the_commands_take_addresses"],
    "Only what is shorter than the 5 MiB": ["test_storage::test_parts_are_what_s3_accepts"],
    "is taken over after a minute": ["test_object_storage::test_a_stale_claim_is_taken_over"],
    "Voxels have their true shape there": ["test_slicer::test_voxels_are_as_high_as_they_are_from_the_side"],
    "They need `pip install": ["test_bad_input::test_without_an_extra_one_sentence_says_what_to_install"],
    "This needs `pip install": ["test_bad_input::test_without_an_extra_one_sentence_says_what_to_install"],
    "At least half of a patch is tissue": ["test_training::test_patches_are_of_tissue_and_of_what_is_labelled"],
    "puts a label at the centre of three of four": ["test_centres::test_centres_have_their_shares_in_every_box"],
    'or `"processes"` decides otherwise': [
        "test_workers::test_own_transforms_are_on_processes_unless_threads_are_asked_for"
    ],
    "over a volume that does not fit into memory": ["test_predict::test_only_what_is_needed_is_predicted"],
    "does the work block by block": ["test_zarr_export::test_memory_is_bounded_by_what_is_projected_not_by_the_box"],
    "Another model or halo is refused": [
        "test_predict::test_a_prediction_is_kept_beside_raw",
        "test_predict::test_how_a_model_is_run_is_part_of_a_store_but_not_where",
    ],
    "no block that was finished is predicted again": [
        "test_predict::test_after_a_kill_nothing_finished_is_predicted_again"
    ],
    "Then the variables are in it at once": [
        "test_add_variables::test_they_are_as_if_the_store_had_been_written_with_them"
    ],
    "Objects are the connected voxels of a mask": ["test_measure::test_it_is_what_is_labelled_in_memory"],
    # archives, formats
    "To try everything without the internet": ["test_code_blocks::test_the_code_of_a_page_runs"],
    "1.4 MB are fetched, not 880 MB": ["real/test_real_size::test_a_window_costs_its_strips_and_the_index"],
    "add `--source made-up --shape": [
        "test_cli::test_download_and_info",
        "test_code_blocks::test_commands_in_the_text_exist",
    ],
    "Others are built in, and you can describe your own": [
        "test_description::test_the_built_in_archives_are_where_they_are"
    ],
    "The folder is on a web server": ["test_dataset::test_the_same_voxels_from_any_file_system"],
    "All slices have the same number of rows": [
        "test_description::test_the_command_takes_a_file_that_describes_an_archive"
    ],
    "Its pixels are (y, x)": ["test_dataset::test_any_chain_of_indexes_fetches_only_what_is_left"],
    "The path of a file follows from": ["test_description::test_the_slice_of_a_file_is_found_again"],
    "The number is there once": ["test_description::test_a_wrong_variable_is_reported_when_it_is_described"],
    "It counts from `first`": ["test_description::test_each_dtype_and_kind_is_read_right"],
    "All variables have the same shape": ["test_cli::test_info_asks_the_source_for_one_slice"],
    "There is a variable `raw` of the kind": ["test_description::test_a_wrong_file_is_one_sentence"],
    "A mask has 0 for background": ["test_description::test_a_mask_of_any_value_is_255"],
    "Instances have the number of an object": ["test_instances::test_a_store_and_its_pyramid_keep_every_number"],
    "Values are whole numbers that fit": [
        "test_description::test_files_of_another_dtype_are_reported_where_they_are_read"
    ],
    "Other values are an error, and never cut off": ["test_tiff_segments::test_a_value_that_no_voxel_can_hold"],
    "The format of a file is TIFF": ["test_description::test_each_dtype_and_kind_is_read_right"],
    "no list of files is needed": ["test_dataset::test_a_window_fetches_its_strips_and_the_index_and_nothing_else"],
    "A file that is not there is an error that names it": [
        "test_bad_input::test_a_missing_slice_names_file_slice_and_rows"
    ],
    "Zeros can be read in its place": ["test_missing::test_missing_slices_are_zeros_where_that_is_asked_for"],
    "| variable | files |": ["test_code_blocks::test_tables_say_what_the_package_says"],
    "| of the archive | what it is |": ["test_code_blocks::test_tables_say_what_the_package_says"],
    "| of a variable | what it is |": ["test_code_blocks::test_tables_say_what_the_package_says"],
    "of any shape, opens with": ["test_dataset::test_the_same_voxels_from_any_file_system"],
    "The second argument is where the archive is": [
        "test_description::test_the_command_takes_a_file_that_describes_an_archive"
    ],
    "| format | for | what is fetched": [
        "test_byteranges::test_a_window_fetches_the_beginnings_of_its_strips",
        "test_tiff_segments::test_only_the_touched_tiles_are_fetched_and_it_says_so_once",
        "test_dataset::test_a_mask_is_fetched_no_further_than_its_last_row",
        "test_png_suite::test_large_ones_are_decoded_once_and_fetched_once",
        "test_hdf5::test_a_window_fetches_its_chunks_and_little_else",
    ],
    "A file with several images is an error": ["test_tiff_segments::test_a_stack_is_no_slice"],
    "up to the end of the PNG chunk": ["test_dataset::test_a_mask_is_fetched_no_further_than_its_last_row"],
    "The array is a dataset of two dimensions": ["test_hdf5::test_other_files_are_one_sentence"],
    "It may be contiguous or in chunks": ["test_hdf5::test_every_layout_and_filter_is_read_right"],
    "Neither h5py nor the HDF5 library is needed": ["test_hdf5::test_nothing_needs_h5py"],
    "such as szip, is refused": ["test_hdf5_damaged::test_filters_that_are_not_supported"],
    # network, limits
    "It compares what came of it with the truth": [
        "test_bench::test_differences_are_counted",
        "test_bench::test_a_wrong_voxel_of_ours_is_a_failure",
    ],
    "`--list` tells the works": ["test_bench::test_all_rows_are_listed"],
    "There are six tries, with back-off": ["test_remote::test_tries_are_bounded_and_the_error_has_the_last_reason"],
    "Redirects are followed five times": [
        "test_answers::test_a_redirect_is_followed_five_times",
        "test_proxies::test_tls_is_not_left_for_a_redirect",
    ],
    "work as in `requests`": [
        "test_credentials::test_netrc_is_looked_at_as_requests_does",
        "test_proxies::test_the_proxy_is_asked",
        "test_proxies::test_some_hosts_are_asked_without_it",
        "test_proxies::test_a_socks_proxy_is_asked",
        "test_proxies::test_certificates_are_those_that_are_set_up",
    ],
    "`clear` empties them": ["test_network::test_the_shell_lists_and_empties_a_cache"],
    "You can read zeros in their place": ["test_missing::test_missing_slices_are_zeros_where_that_is_asked_for"],
    "--missing zeros on the command line": ["test_missing::test_the_shell_takes_it"],
    "A warning is logged for each such file": ["test_missing::test_a_store_lists_what_is_missing_and_is_finished"],
    "| error | is also | when |": ["test_code_blocks::test_tables_say_what_the_package_says"],
    "All of them are in the namespace": ["test_code_blocks::test_tables_say_what_the_package_says"],
    "| setting | default | what it is |": ["test_code_blocks::test_tables_say_what_the_package_says"],
    "are read when a Dataset is opened, and travel": ["test_dataset::test_options_may_come_from_dask_config"],
    "you get an error that lists the folders": [
        "test_bad_input::test_a_missing_class_lists_the_folders_that_are_there"
    ],
    "keeps to the labelled part": ["test_training::test_patches_are_of_tissue_and_of_what_is_labelled"],
    "at the beginning or at the end, both are read": ["test_dialects::test_tiffs_with_the_directory_first"],
    "The package records sizes and ETags": [
        "test_remote::test_a_file_that_changes_between_two_reads_is_an_error_not_a_mix"
    ],
    "several codings were tested": ["test_hdf5::test_every_layout_and_filter_is_read_right"],
    "are not compared with the archive again": [
        "test_computed::test_what_a_cluster_keeps_outlives_a_change_of_the_source"
    ],
    "A strip is read from its left edge": ["test_byteranges::test_a_window_fetches_the_beginnings_of_its_strips"],
    "A cross-section along z reads one strip": [
        "test_directory::test_a_cross_section_fetches_only_the_entries_that_it_needs"
    ],
    "A store has one writer at a time": ["test_zarr_export::test_of_two_writers_at_once_the_second_is_refused"],
    "`add_variables` adds variables": ["test_add_variables::test_they_are_as_if_the_store_had_been_written_with_them"],
}

MEASURED = {
    "the sharp picture of a whole slice appears after 5 s": "tests/bench/view.py",
    "| what | first coarse picture | sharp picture |": "tests/bench/view.py",
    "a whole slice of 880 MB costs 42 MB": "tests/bench/view.py",
    "neuroglancer shows a whole slice sharply": "tests/bench/gateway.py",
    "The pyramid takes a third more disk": "tests/bench/pyramid.py",
    "compares the loader with": "tests/bench/rows/patches.py",
    "The same work by other means, in seconds": "tests/bench/__main__.py",
    "Far away is a server that answers after 0.3 s": "tests/bench/servers.py",
    "What came out was compared with what tifffile and Pillow read": "tests/bench/archive.py",
    "| work | liver_dask | torch_em's module |": "tests/bench/rows/__init__.py",
    "made these tables with bytes, requests, memory and versions": "tests/bench/report.py",
    "on smaller slices, where the others lose less": "tests/bench/__main__.py",
    "miao-io drew the patches": "tests/bench/rows/patches.py",
    "measures each work of these pages": "tests/bench/__main__.py",
    "tells how costs grow": "tests/bench/growth.py",
    "compares EMPIAR-12535 with": "tests/bench/mito_segem.py",
    "trains a U-Net in six minutes": "notebooks/train_mito.ipynb",
    "are made by the million": "tests/fuzz/run.py",
}

UNTESTED = [
    "`s3://...`",  # only the file systems `memory` and `file` are tested
    "on a cluster that already runs, `--scheduler tcp://...`",  # only the error about a wrong address is tested
    "A worker needs 0.6 GB",  # the projected memory is tested in one process only
    "dask reads as many as the machine has cores",
    "`to_zarr` has its own scheduling",
]
"""Fragments of promises that no test checks."""

NO_PROMISE = [
    # ways to other pages, and what a page or a block of code is about
    "[how to look](.github/docs/look.md)",
    "[how to keep a box or the full volume]",
    "[how to train](.github/docs/train.md)",
    "[how to compute, predict and measure]",
    "| page | what it tells |",
    "`liver-dask COMMAND --help` and",
    "Four ways to use it follow",
    "Use it.",
    "If you have no Jupyter",
    "Keep the box that you read again and again",
    "Then download it, look what is there",
    "The same in Python",
    "With a store and a model",
    "[a made-up archive](.github/docs/archives.md",
    "The [notebooks](../../notebooks) begin",
    "Its cells are synthetic",
    "slices, rows, columns",
    "for functions with torch_em's names, too",
    "EMPIAR-13356 is one archive of slices",
    "These are the rules",
    "The volume is a stack of slices along z",
    "One file holds one slice of one variable",
    "All others are labels",
    "[Formats](formats.md) tells",
    "EMPIAR-13356 itself is laid out like this",
    "These are all attributes",
    "How to read voxels lazily",
    "You need not know it to begin",
    "Read single voxels at points",
    "Give each axis as a DataArray",
    "**Parallel reads.**",
    "Here `checkpoints/mito` is the folder",
    "a store, see Keep",
    "Which files of slices can be read",
    "A strip is the unit of compression",
    "In EMPIAR-13356 it is one row of 20000 pixels",
    "So a window at the right edge costs more",
    "**Other TIFFs and PNGs.**",
    "The byte counts of this documentation",
    "PNG has no way to begin in the middle",
    "How to write a box or the full volume",
    "[The network](network.md) tells about retries",
    "How to see the volume",
    "[Keep](keep.md) tells how to make a store",
    "How long it takes was measured",
    "A viewer that shows a large store from far away",
    "They are called a pyramid",
    "Open the store:",
    "the last line of a cell",
    "the archive, in a browser",
    "a store, in a browser",
    "How the package asks an archive for bytes",
    "Count what this process fetches",
    "Between processes, on the disk",
    "[Peers](peers.md) tells",
    "How to draw patches of the volume",
    "The functions have torch_em's names",
    "x_min, x_max, y_min, y_max, z_min, z_max",
    "a network of your own",
    "a stand-in for a network: what is dark",
    "on a GPU: raw.cuda",
    "what it holds",
    # of Slurm, of other clusters, and comments in scripts
    "How many workers are useful depends",
    "The compute nodes of many clusters",
    "If your cluster does not allow `scontrol requeue`",
    "Save it as `one-node.sbatch`",
    "It does not start itself again",
    "Few workers suffice",
    "By estimate, decoding and compressing",
    "Further workers wait, and are charged",
    "does not fit into most home folders",
    "The logs of the workers are in",
    "has had no worker for 5 s",
    "they do not reach the driver",
    "was lost with its worker again and again",
    "Look for `OUT_OF_MEMORY`",
    "Messages of `distributed` about keys",
    "may leave `dask-scratch-space`",
    "It is empty of voxels",
    "beside liver_dask, in an environment",
    "what it costs",
    "can a node reach the archive?",
    "A worker ends by itself shortly before",
    "Without TLS, everybody on the network",
    "the cluster is closed in peace",
    "by which Slurm ends a job that is requeued",
    "by one that ends the process",
    "of jobs that are lost at the same task",
    "so the address is right",
    "the archive may be there again soon",
    "the driver and the workers",
    "when no job runs",
    # policy
    "The oldest versions of dependencies are in",
    "They are kept for as long as [SPEC 0]",
    # facts about the data, and about other packages
    "It is 597 slices of 20000 x 20000",
    "What nobody knows for sure about the data",
    "Read this before you publish",
    "**The size of a voxel in z is disputed.**",
    "In x and y it is 8 nm",
    "In z it is 55 nm",
    "Volumes, surfaces and shapes depend on it",
    "Say which size you use",
    "**The mito masks are not made by hand.**",
    "So a fraction of a whole slice may be too low",
    "**Six more classes are only heard of.**",
    "The authors mention `bile_duct`",
    "The names of their folders are not confirmed",
    "**The inside of the raw files is not confirmed.**",
    "A raw file has about 880 MB",
    "**Beside the tissue, slices are empty.**",
    "Tissue is in x 1195 to 18890",
    "Outside, raw is 0",
    "**There are no checksums of the archive.**",
    "So nobody can tell whether a file of it",
    "**The archive is slow from far away.**",
    "About 1.5 MB/s over one connection",
    "The full volume takes days then",
    "**EMPIAR-12535 is a prediction, too.**",
    "Its mitochondria were found by a network",
    "What other packages do and do not do",
    "*Run* means that a benchmark",
    "Nothing else is claimed",
    "| package | what it does |",
    # what the package cannot do
    "It was run on Linux",
    "It needs file locks of POSIX",
    "So the right edge of raw and the bottom",
    "Keep a box first if you look at many",
    "Nothing is written back to an archive",
    "Stores are written in Zarr v3 only",
    "The interface may change before version 1.0",
    "Try it with nothing but Python",
    "Work on it",
    "In Jupyter, slide through",
    "A voxel without a label is not always background",
    "The tissue of all 597 slices is 1 TB",
    "The archive has no checksums",
    "TLS, which the archive uses",
    "**napari**",
    "As jobs of Slurm",
    "Far from the archive the network is the limit",
    "MIT licence",
    "An archive is a folder of slices",
    "Its description is a few lines",
    "shows how to add an archive or a format",
    "The data are CC0",
]

LONGEST = 120


def pages() -> dict[str, str]:
    """The text of the README, and of each page of docs."""
    return {
        path.name: path.read_text() for path in (ROOT / "README.md", *sorted((ROOT / ".github" / "docs").glob("*.md")))
    }


def flat(text: str) -> str:
    return " ".join(text.split())


def sentences(text: str) -> list[str]:
    """The sentences of the prose of a page, its tables, and the comments of examples, without headings and pictures."""
    prose = re.sub(r"^```.*?^```$", "\n\n", text, flags=re.DOTALL | re.MULTILINE)
    parts = [flat(part) for part in re.split(r"\n\s*\n|\n(?=- |\d+\. )", prose)]
    parts = [re.sub(r"^(- |\d+\. )", "", part) for part in parts if part and not part.startswith(("#", "!["))]
    ends = re.compile(r"(?<=[.!?]\)) |(?<=[.!?]\*\*) |(?<=[.!?]) ")
    found = [sentence for part in parts for sentence in ([part] if part.startswith("|") else ends.split(part))]
    for block in re.findall(r"^```(?:python|sh)$(.*?)^```$", text, flags=re.DOTALL | re.MULTILINE):
        found += [flat(comment) for comment in re.findall(r"  # (.*)$", block, flags=re.MULTILINE)]
    return found


@functools.cache
def functions_in(path: str) -> set[str]:
    """The functions in a file of tests, which is found by the end of its path."""
    files = list((ROOT / "tests").rglob(f"{path}.py"))
    assert len(files) == 1, f"{path} is the name of {len(files)} files of tests"
    tree = ast.parse(files[0].read_text())
    return {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}


def test_each_promise_is_on_a_page_and_its_tests_are_there() -> None:
    """Each fragment is on a page, and each named test and benchmark exists."""
    text = " ".join(flat(page) for page in pages().values())
    fragments = [*PROMISES, *MEASURED, *UNTESTED, *NO_PROMISE]
    assert [fragment for fragment in fragments if flat(fragment) not in text] == [], "on no page"
    assert len(fragments) == len(set(fragments))
    named = [test.split("::") for tests in PROMISES.values() for test in tests]
    assert all(PROMISES.values()), "a promise without a test"
    assert [f"{path}::{name}" for path, name in named if name not in functions_in(path)] == [], "no such test"
    assert [path for path in MEASURED.values() if not (ROOT / path).exists()] == []


def test_each_sentence_is_covered() -> None:
    """Each sentence of the README and of docs contains a fragment of one of the lists."""
    known = [flat(fragment) for fragment in [*PROMISES, *MEASURED, *UNTESTED, *NO_PROMISE]]
    found = [(page, sentence) for page, text in pages().items() for sentence in sentences(text)]
    bare = [(page, sentence) for page, sentence in found if not any(fragment in sentence for fragment in known)]
    assert bare == [], "add each to PROMISES with its tests, or to one of the other lists"


def test_a_sentence_that_is_new_would_be_noticed() -> None:
    """`sentences` finds the sentences of each page."""
    found = {page: sentences(text) for page, text in pages().items()}
    assert all(len(sentence) > 3 for page in found.values() for sentence in page)
    assert "Opening it costs nothing." in found["README.md"]
    assert any(sentence.startswith("four of five blocks of the volume") for sentence in found["README.md"])
    assert "Each process loads the model once." in found["compute.md"]
    assert sentences("0. Zero.\n1. One. More.\n- Two.") == ["Zero.", "One.", "More.", "Two."]
    assert sentences("One (or\ntwo). Three: 0.5 mm.\n\n| a | b |\n|---|---|\n| 1. | 2 |") == [
        "One (or two).",
        "Three: 0.5 mm.",
        "| a | b | |---|---| | 1. | 2 |",
    ]


def test_going_back_costs_no_request(server: ArchiveServer) -> None:
    """A window that was read before is read again without a request."""
    ds = ld.open_human_liver_em(server.url, shape=SHAPE)
    first = ds.isel(z=3, y=slice(40, 90), x=slice(10, 200)).compute()
    ds.isel(z=4, y=slice(40, 90), x=slice(10, 200)).compute()
    server.requests.clear()
    again = ds.isel(z=3, y=slice(40, 90), x=slice(10, 200)).compute()
    assert not server.requests
    assert all(np.array_equal(first[name], again[name]) for name in first)


def test_a_file_system_without_locks_is_only_logged(
    archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """On a file system without locks an export succeeds, and a warning is logged."""

    def refused(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refused)
    ds = ld.open_human_liver_em(archive, shape=SHAPE)
    with caplog.at_level(logging.WARNING):
        ld.to_zarr(ds, tmp_path / "a.zarr", bounding_box=(0, 50, 0, 50, 0, 2), progress=False)
    assert "no locks" in caplog.text
