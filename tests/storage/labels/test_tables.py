"""Tables of conditions as OMS, brilcalc, triggers and pandas write them: meaning of values, and notes on what is left out."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import numpy as np
import pytest

from dqmstream.errors import InputError
from dqmstream.lumisection import LUMISECTION_S
from dqmstream.storage.archive import Archive
from dqmstream.storage.imports.readers.groups import read_group
from dqmstream.storage.labels.luminosity import LuminosityTable, read_luminosity, read_tables
from tests.commandline import dqmstream, result, told
from tests.layouts import depth_maps, write_group
from tests.maps import counts, write_run

REAL = Path(__file__).resolve().parents[3] / ".." / "shared" / "real"
real_files = pytest.mark.skipif(not REAL.is_dir(), reason="files of others are not here")


def read(path: Path, content: object, hlt_path: str = "HLT_ZeroBias") -> LuminosityTable:
    """The table of a file with this content: text, or an object to be written as JSON."""
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return read_luminosity(path, hlt_path)


def oms_line(run: int, lumisection: int, **attributes: object) -> dict[str, object]:
    named = {"run_number": run, "lumisection_number": lumisection, **attributes}
    return {"id": f"{run}_{lumisection}", "type": "lumisections", "attributes": named, "links": {"self": "https://oms"}}


def said(table: LuminosityTable, part: str) -> str:
    """The only note that contains this text."""
    (note,) = [note for note in table.notes if part in note]
    return note


def test_of_oms_the_luminosity_of_the_lumisection_is_taken_and_not_the_sum_beside_it(tmp_path: Path) -> None:
    line = oms_line(
        297050, 1, pileup=40.38, delivered_lumi=34.78, recorded_lumi=25.67,
        delivered_lumi_per_lumisection=0.13637, recorded_lumi_per_lumisection=0.01474, hbhea_ready=True, gem_ready=None,
    )  # fmt: skip
    table = read(tmp_path / "oms.json", {"data": [line], "links": {}, "meta": {"totalResourceCount": 1}})
    found = {name: values.tolist() for name, values in table.values.items() if name != "n_events"}
    assert found == {"pileup": [40.38], "delivered_lumi": [0.13637], "recorded_lumi": [0.01474]}
    assert "delivered_lumi not used: delivered_lumi_per_lumisection stands beside it" in said(table, "delivered_lumi not")
    assert "columns not used: hbhea_ready, gem_ready" in said(table, "columns not used")


def test_a_sum_over_the_run_is_known_by_its_values_and_differenced(tmp_path: Path) -> None:
    own = np.array([0.0, 0.31, 0.33, 0.0, 0.3, 0.32, 0.31, 0.29, 0.28])
    total = (34.0 + own.cumsum()).round(9)
    lines = [oms_line(7, k + 1, delivered_lumi=value, recorded_lumi=own[k]) for k, value in enumerate(total)]
    table = read(tmp_path / "oms.json", [line["attributes"] for line in (*lines[:6], *lines[7:])])
    found = table.of(7, np.arange(1, 10))
    np.testing.assert_allclose(found["delivered_lumi"], [np.nan, *own[1:6], np.nan, np.nan, own[8]], atol=1e-8)
    np.testing.assert_allclose(found["recorded_lumi"], [*own[:6], np.nan, *own[7:]])
    assert "sum over the run: differences of neighbouring lumisections were taken, and 2 of 8" in said(table, "sum over")


def test_a_luminosity_that_only_rises_with_pileup_is_no_sum_and_few_lines_are_told(tmp_path: Path) -> None:
    ramp = np.linspace(1, 60, 12)
    table = read(tmp_path / "t.json", {"ls": list(range(1, 13)), "pileup": list(ramp), "delivered_lumi": list(ramp / 200)})
    np.testing.assert_array_equal(table.values["delivered_lumi"], ramp / 200)
    few = read(tmp_path / "u.json", {"ls": [1, 2], "delivered_lumi": [0.3, 0.31]})
    np.testing.assert_array_equal(few.values["delivered_lumi"], [0.3, 0.31])
    assert "use delivered_lumi_per_lumisection" in said(few, "taken as the lumisection's own")


def test_values_just_below_zero_are_zero_and_other_bad_ones_are_left_out_and_told(tmp_path: Path) -> None:
    text = "ls,pileup,delivered\n1,-3e-8,-2.3e-8\n2,60,.3\n3,-7,many\n4,inf,.3\nx,61,.3\n6,62,.3\n6,63,.3\n7,64\n"
    table = read(tmp_path / "t.csv", text)
    assert table.lumisection.tolist() == [1, 2, 3, 4, 6]
    np.testing.assert_array_equal(table.values["pileup"], [0, 60, np.nan, np.nan, np.nan])
    np.testing.assert_array_equal(table.values["delivered_lumi"], [0, 0.3, np.nan, 0.3, 0.3])
    for note in (
        "t.csv: 1 values of pileup below 0 (the lowest -3e-08) taken as 0",
        "t.csv: 1 values of delivered_lumi below 0 (the lowest -2.3e-08) taken as 0",
        "t.csv: 2 values of pileup left out, the first in line 3 of data: pileup is -7.0, which cannot be",
        "t.csv: 1 values of delivered_lumi left out, the first in line 3 of data: delivered is 'many', no number",
        "t.csv: 1 lines left out, the first in line 5 of data: ls is 'x', no number",
        "t.csv: 1 values of pileup left out: it names lumisection 6 twice, with pileup 62.0 and 63.0",
        "t.csv: 1 lines left out, without the 3 columns of the first line (line 9)",
    ):
        assert note in table.notes


def test_the_table_of_a_group_file_is_of_lumisections_and_a_bad_value_of_it_is_left_out(tmp_path: Path) -> None:
    table = np.zeros(8, [("run", "i8"), ("ls", "i8"), ("lumi", "f8"), ("pileup", "f8")])
    table["run"], table["ls"], table["lumi"] = 356000, np.arange(1, 9), np.linspace(0.1, 0.8, 8)
    table["pileup"] = [30, -1e-6, np.inf, 31, 31, 31, 31, 31]
    path = write_group(tmp_path, 356000, depth_maps(1, 8, 7), table)
    data = read_group(path, crop=False)
    beside = data.luminosity
    np.testing.assert_array_equal(data.pileup[:4], [30, 0, np.nan, 31])
    assert beside is not None
    np.testing.assert_array_equal(beside.values["recorded_lumi"], table["lumi"])
    assert "1 values of pileup left out, the first in line 3 of data: pileup is inf" in said(beside, "left out")
    assert "1 values of pileup below 0" in said(beside, "below 0")


BRIL = """#Data tag : 24v2 , Norm tag: onlineresult
#run:fill,ls,time,beamstatus,E(GeV),delivered(/ub),recorded(/ub),avgpu,source
378994:9474,5:5,04/05/24 20:51:27,STABLE BEAMS,6800,1600.5,1500.1,59.2,HFET
378994:9474,6:0,04/05/24 20:51:50,STABLE BEAMS,6800,1601.5,0.0,59.3,HFET
#Summary:
#nfill,nrun,nls,ncms,totdelivered(/ub),totrecorded(/ub)
#1,1,2,1,3202.0,1500.1
"""


def test_a_table_of_brilcalc_is_read_as_it_is_written(tmp_path: Path) -> None:
    table = read(tmp_path / "byls.csv", BRIL)
    assert (table.run.tolist(), table.lumisection.tolist()) == ([378994] * 2, [5, 6])
    assert table.values["delivered_lumi"].tolist() == [1600.5, 1601.5]
    assert table.values["recorded_lumi"].tolist() == [1500.1, 0]
    assert table.values["pileup"].tolist() == [59.2, 59.3]
    assert "byls.csv: delivered_lumi is in /ub" in table.notes


def rates(run: int, **paths: list[float]) -> dict[str, object]:
    """Rates in the form that analyses of the field use."""
    return {
        str(run): {
            name: {"rate": rate, "first_lumisection_number": list(range(1, len(rate) + 1)), "run_number": [run] * len(rate)}
            for name, rate in paths.items()
        }
    }


def test_events_are_the_rate_of_zero_bias_times_the_length_of_a_lumisection(tmp_path: Path) -> None:
    content = rates(7, HLT_ZeroBias_v12=[53.967305708748505, 50.0, 0.0], HLT_ZeroBias_Alignment_v5=[9.0], HLT_Physics_v10=[7.0])
    content |= rates(8, HLT_Physics_v10=[7.0])
    table = read(tmp_path / "hlt.json", content)
    assert (table.run.tolist(), table.lumisection.tolist()) == ([7] * 3, [1, 2, 3])
    np.testing.assert_allclose(table.values["n_events"], [1258, 50 * LUMISECTION_S, 0], rtol=1e-12)
    assert "paths not used: HLT_ZeroBias_Alignment_v5, HLT_Physics_v10" in said(table, "not used")
    assert "1 of 2 runs have no rate of HLT_ZeroBias" in said(table, "have no rate")
    other = read(tmp_path / "hlt.json", content, "HLT_Physics")
    np.testing.assert_allclose(other.values["n_events"], [7 * LUMISECTION_S] * 2)
    with pytest.raises(InputError, match=r"hlt.json has no rate of HLT_X; it has HLT_Zero.*--hlt-path"):
        read(tmp_path / "hlt.json", content, "HLT_X")
    lines = [
        oms_line(7, 1, path_name="HLT_ZeroBias_v1", rate=50.0, first_lumisection_number=n, last_lumisection_number=last)
        for n, last in ((1, 1), (2, 9))
    ]
    for line in lines:
        del line["attributes"]["lumisection_number"]  # type: ignore[attr-defined]
    answer = read(tmp_path / "oms.json", {"data": lines})
    np.testing.assert_allclose(answer.values["n_events"], [50 * LUMISECTION_S])
    assert "1 lines left out: their rate is of several lumisections" in said(answer, "several")


def test_a_page_of_a_longer_answer_is_refused_and_all_pages_are_one_table(tmp_path: Path) -> None:
    address = "https://oms/lumisections?filter[run_number]=7&page[offset]={}"
    pages = [
        {
            "data": [oms_line(7, 2 * page + k, pileup=50.0 + k) for k in (1, 2)],
            "links": {"self": address.format(page), "next": address.format(page + 1) if page < 2 else None},
            "meta": {"totalResourceCount": 6},
        }
        for page in range(3)
    ]
    for page, content in enumerate(pages):
        (tmp_path / f"{page}.json").write_text(json.dumps(content))
    files = sorted(tmp_path.iterdir())
    with pytest.raises(InputError, match=r"0.json holds 2 of 6 lines of a longer answer: give all its pages together"):
        read_luminosity(files[0])
    with pytest.raises(InputError, match=r"0.json and 2 more pages hold 4 of 6 lines"):
        read_tables([files[0], files[2], files[0]])
    other = tmp_path / "other.csv"
    other.write_text("ls,pileup\n1,2\n")
    tables = read_tables([files[2], other, *files[:2]])
    assert sorted(table.lumisection.tolist() for table in tables) == [[1], [1, 2, 3, 4, 5, 6]]
    for page, content in enumerate(pages):
        del content["meta"]
        files[page].write_text(json.dumps(content))
    with pytest.raises(InputError, match="lines of a longer answer"):
        read_tables(files[:2])
    assert len(read_tables(files)[0].run) == 6


@pytest.mark.parametrize("orient", ["columns", "index", "split", "records", "table", "lines"])
def test_what_pandas_writes_is_read(tmp_path: Path, orient: str) -> None:
    names, rows = ["run_number", "ls", "pileup"], [[7, 1, 30.5], [7, 2, None]]
    records = [dict(zip(names, row, strict=True)) for row in rows]
    written = {
        "columns": {name: {str(k): row[place] for k, row in enumerate(rows)} for place, name in enumerate(names)},
        "index": {str(k): record for k, record in enumerate(records)},
        "split": {"columns": names, "index": [0, 1], "data": rows},
        "records": records,
        "table": {"schema": {"fields": []}, "data": [{"index": k, **record} for k, record in enumerate(records)]},
        "lines": "\n".join(map(json.dumps, records)),
    }
    table = read(tmp_path / "t.json", written[orient])
    assert (table.run.tolist(), table.lumisection.tolist()) == ([7, 7], [1, 2])
    np.testing.assert_array_equal(table.values["pileup"], [30.5, np.nan])


def test_compressed_files_capital_suffixes_and_decimal_commas_are_read(tmp_path: Path) -> None:
    text = "ls,pileup,events\n1,59.2,1200\n2,1e1,\n"
    (tmp_path / "a.CSV").write_text(text)
    (tmp_path / "b.csv.gz").write_bytes(gzip.compress(text.encode()))
    (tmp_path / "c.csv").write_text("ls;pileup;events\n1;59,2;1200\n2;1e1;\n")
    (tmp_path / "d.csv").write_text("# by hand\n" + text.replace(",", "\t"))
    assert len({read_luminosity(path).sha256 for path in tmp_path.iterdir()}) == 1
    (tmp_path / "e.csv.gz").write_bytes(gzip.compress(text.encode())[:-9])
    (tmp_path / "f.json").write_text("[" * 100_000)
    for name in ("e.csv.gz", "f.json"):
        with pytest.raises(InputError, match=f"{name} cannot be read"):
            read_luminosity(tmp_path / name)


def test_the_import_joins_rates_and_conditions_and_says_what_it_left_out(tmp_path: Path) -> None:
    path = write_run(tmp_path / "data", 7, counts(7, 3), sidecars=False)
    (tmp_path / "oms.csv").write_text("run,ls,pileup\n7,1,30\n7,2,-9\n7,3,31\n")
    (tmp_path / "hlt.json").write_text(json.dumps(rates(7, HLT_ZeroBias_v12=[80.0, 85.0, 0.04])))
    asked = ("import", path, "--archive", tmp_path / "A", "--lumi", tmp_path / "oms.csv", "--lumi", tmp_path / "hlt.json")
    done = result(*asked)
    assert "oms.csv: 1 values of pileup left out, the first in line 2 of data: pileup is -9.0, which cannot be" in done["notes"]  # type: ignore[operator]
    assert done["files"][0]["notes"] == [  # type: ignore[index]
        "oms.csv: conditions of 2 of 3 lumisections",
        "hlt.json: conditions of 3 of 3 lumisections",
        "hlt.json: events of 1 lumisections left out, from 3 on: a channel counts more, or they are above --max-events",
    ]
    view = Archive.open(tmp_path / "A").run(7, maps=False)
    np.testing.assert_array_equal(view["pileup"], [30, np.nan, 31])
    np.testing.assert_allclose(view["n_events"], [80 * LUMISECTION_S, 85 * LUMISECTION_S, np.nan])
    again = dqmstream(*asked)
    assert "unchanged" in again.stdout and "hlt.json is version 2, as before" in again.stdout
    assert "has no rate of HLT_X" in told(dqmstream(*asked, "--hlt-path", "HLT_X"), 3)


@real_files
def test_real_tables_hold_what_they_are_known_to_hold() -> None:
    run_2024i = read_luminosity(REAL / "ec_omsdata_Run2024I-v1.json")
    assert (len(run_2024i.run), len(np.unique(run_2024i.run))) == (29080, 160)
    assert np.nanmax(run_2024i.values["delivered_lumi"]) == 0.504568689639
    run_2024a = read_luminosity(REAL / "ec_omsdata_Run2024A-v1.json")
    assert "1140 values of delivered_lumi below 0 (the lowest -1.03e-08) taken as 0" in said(run_2024a, "of delivered_lumi")
    assert min(np.nanmin(run_2024a.values[name]) for name in ("pileup", "delivered_lumi", "recorded_lumi")) == 0
    events = read_luminosity(REAL / "hltrate_Run2024B-v1_subset.json").of(378981, np.arange(1, 200))["n_events"]
    assert events[3] == 1258 and 1200 < np.nanmedian(events) < 1270
    with pytest.raises(InputError, match="1 of 793 lines of a longer answer"):
        read_luminosity(REAL / "oms_answer.json")
    assert read_luminosity(REAL / "bril_byls.csv").values["pileup"].tolist() == [59.2, 59.3, 59.1]
