"""Downloads from servers that break off, are slow, move files and send other contents: bytes are counted, digests compared."""

import hashlib
import random
import socket
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import pytest

from cem_assets import environment
from cem_assets.sources.files.addresses import check_address, check_redirect
from cem_assets.sources.files.description import DownloadLimits, RemoteFile, check_file_path
from cem_assets.sources.files.download import download, download_url
from cem_assets.sources.files.origins import OpenOrigin
from cem_assets_tests.conftest import S3
from cem_assets_tests.services.unreliable_http import Answer, UnreliableHttp, serve_unreliably

DATA = random.Random(1).randbytes(3_000_000)
SHA256 = hashlib.sha256(DATA).hexdigest()
LIMITS = DownloadLimits(max_bytes=10**7, num_attempts=3, backoff_s=0.01, timeout_s=5.0)


@pytest.fixture
def primary(monkeypatch: pytest.MonkeyPatch) -> Iterator[UnreliableHttp]:
    monkeypatch.setenv(environment.ALLOW_PRIVATE_SOURCES.name, "yes")
    with serve_unreliably({"a.bin": DATA}) as served:
        yield served


@pytest.fixture
def mirror() -> Iterator[UnreliableHttp]:
    with serve_unreliably({"m/a.bin": DATA}) as served:
        yield served


def wanted(server: UnreliableHttp, **changes: object) -> RemoteFile:
    facts = {"num_bytes": len(DATA), "checksum": f"sha256:{SHA256}", **changes}
    return RemoteFile("sub/a.bin", f"{server.address}/a.bin", **facts)


@pytest.mark.parametrize(
    "checksum",
    [
        f"sha256:{SHA256}",
        f"md5:{hashlib.md5(DATA).hexdigest().upper()}",
        f"sha1:{hashlib.sha1(DATA).hexdigest()}",
        f"git-sha1:{hashlib.sha1(b'blob %d' % len(DATA) + bytes(1) + DATA).hexdigest()}",
        None,
    ],
)
def test_a_file_is_fetched_once_and_checked_by_any_digest(primary: UnreliableHttp, tmp_path: Path, checksum: str | None):
    steps: list[tuple[int, int | None]] = []
    found = download(wanted(primary, checksum=checksum), [], tmp_path, LIMITS, lambda done, total: steps.append((done, total)))
    assert (found.path, found.sha256, found.failed) == (tmp_path / "sub/a.bin", SHA256, ())
    assert found.path.read_bytes() == DATA and steps[-1] == (len(DATA), len(DATA))
    assert [path.name for path in found.path.parent.iterdir()] == ["a.bin"]
    again = download(wanted(primary, checksum=checksum), [], tmp_path, LIMITS)
    assert again.sha256 == SHA256 and again.origin == ("" if checksum else f"{primary.address}/a.bin")
    assert primary.num_bytes["a.bin"] == len(DATA) * (1 if checksum else 2)


def test_a_broken_download_goes_on_where_it_stopped(primary: UnreliableHttp, tmp_path: Path):
    primary.answers["a.bin"] = [Answer(dies_after=1_000_000), Answer(status=503), Answer(dies_after=500_000), Answer()]
    found = download(wanted(primary), [], tmp_path, DownloadLimits(10**7, 4, 0.01, 5.0))
    assert found.sha256 == SHA256 and found.failed == ()
    assert primary.ranges("a.bin") == ["", "bytes=1000000-", "bytes=1000000-", "bytes=1500000-"]
    assert primary.num_bytes["a.bin"] == len(DATA) + len(b"<html>an error page, never data</html>"), "no byte came twice"


def test_the_next_run_goes_on_where_the_last_one_gave_up(primary: UnreliableHttp, tmp_path: Path):
    primary.answers["a.bin"] = [Answer(dies_after=2_000_000), Answer(status=500)]
    with pytest.raises(ConnectionError, match=r"status 500 \(2,000,000 bytes so far, try 3\).*Run again later"):
        download(wanted(primary), [], tmp_path, LIMITS)
    assert not (tmp_path / "sub/a.bin").exists()
    primary.answers.clear()
    assert download(wanted(primary), [], tmp_path, LIMITS).sha256 == SHA256
    assert primary.ranges("a.bin")[-1] == "bytes=2000000-"


def test_a_source_that_dies_in_the_middle_is_finished_by_the_mirror_with_the_same_digest(
    primary: UnreliableHttp, mirror: UnreliableHttp, tmp_path: Path
):
    primary.answers["a.bin"] = [Answer(dies_after=1_200_000), Answer(status=503)]
    found = download(wanted(primary), [f"{mirror.address}/gone", f"{mirror.address}/m/a.bin"], tmp_path, LIMITS)
    assert found.path.read_bytes() == DATA and found.sha256 == SHA256
    assert found.origin == f"{mirror.address}/m/a.bin"
    assert [item.address for item in found.failed] == [f"{primary.address}/a.bin", f"{mirror.address}/gone"]
    assert "status 503" in found.failed[0].problem and "status 404" in found.failed[1].problem
    assert mirror.ranges("m/a.bin") == ["bytes=1200000-"] and mirror.num_bytes["m/a.bin"] == len(DATA) - 1_200_000


def test_a_server_that_is_gone_altogether_is_replaced_by_the_mirror(
    mirror: UnreliableHttp, primary: UnreliableHttp, tmp_path: Path
):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        file = RemoteFile("a.bin", f"http://127.0.0.1:{unused.getsockname()[1]}/a.bin", None, f"sha256:{SHA256}")
        assert download(file, [f"{mirror.address}/m/a.bin"], tmp_path, LIMITS).sha256 == SHA256


def test_a_server_without_ranges_begins_anew(primary: UnreliableHttp, tmp_path: Path):
    primary.answers["a.bin"] = [Answer(dies_after=1_000_000), Answer(has_ranges=False)]
    assert download(wanted(primary), [], tmp_path, LIMITS).sha256 == SHA256
    assert primary.num_bytes["a.bin"] == len(DATA) + 1_000_000


@pytest.mark.parametrize("answer", [Answer(is_chunked=True, dies_after=1_000_000), Answer(dies_after=1_000_000)])
def test_a_file_of_unknown_size_and_digest_is_never_taken_for_whole_when_it_broke_off(
    primary: UnreliableHttp, tmp_path: Path, answer: Answer
):
    primary.answers["a.bin"] = [answer, Answer()]
    found = download(wanted(primary, num_bytes=None, checksum=None), [], tmp_path, LIMITS)
    assert found.sha256 == SHA256
    assert primary.ranges("a.bin") == ["", ""], "nothing tells whether the parts belong together, so it begins anew"


def test_without_a_digest_a_file_goes_on_only_under_the_same_entity_tag(primary: UnreliableHttp, tmp_path: Path):
    primary.etags["a.bin"] = '"one"'
    primary.answers["a.bin"] = [Answer(dies_after=1_000_000), Answer()]
    assert download(wanted(primary, checksum=None), [], tmp_path, LIMITS).sha256 == SHA256
    assert primary.ranges("a.bin") == ["", "bytes=1000000-"] and primary.num_bytes["a.bin"] == len(DATA)
    other = bytes(len(DATA))
    # The file changes between the two requests: the tag differs, and the server sends all of the new file.
    primary.answers["a.bin"] = [Answer(dies_after=1_000_000, headers={"ETag": '"zero"'}), Answer(body=other)]
    found = download(wanted(primary, checksum=None), [], tmp_path / "new", LIMITS)
    assert found.path.read_bytes() == other


def test_parts_that_do_not_fit_together_are_fetched_anew(primary: UnreliableHttp, tmp_path: Path):
    primary.answers["a.bin"] = [Answer(body=bytes(len(DATA)), dies_after=1_000_000), Answer()]
    assert download(wanted(primary), [], tmp_path, LIMITS).path.read_bytes() == DATA
    assert primary.ranges("a.bin") == ["", "bytes=1000000-", ""]
    (tmp_path / "sub/a.bin").unlink()
    (tmp_path / "sub/a.bin.part").write_bytes(DATA + b"more than there is")
    assert download(wanted(primary), [], tmp_path, LIMITS).path.read_bytes() == DATA


def test_a_complete_part_needs_no_byte_more(primary: UnreliableHttp, tmp_path: Path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub/a.bin.part").write_bytes(DATA)
    assert download(wanted(primary), [], tmp_path, LIMITS).sha256 == SHA256
    assert primary.num_bytes.get("a.bin", 0) == 0


@pytest.mark.parametrize(
    ("answer", "problem"),
    [
        (Answer(body=bytes(len(DATA))), "it has sha256 .* expected"),
        (Answer(body=DATA[:-1]), "it has 2,999,999 bytes; expected 3,000,000"),
        (Answer(body=DATA + b"x"), "it has 3,000,001 bytes; expected 3,000,000"),
    ],
)
def test_other_contents_are_refused_and_a_mirror_with_the_right_ones_is_taken(
    primary: UnreliableHttp, mirror: UnreliableHttp, tmp_path: Path, answer: Answer, problem: str
):
    primary.answers["a.bin"] = [answer]
    with pytest.raises(ValueError, match=f"not what was expected anywhere.*{problem}"):
        download(wanted(primary), [], tmp_path, LIMITS)
    assert len(primary.asked) == 1, "another try would bring the same"
    assert not (tmp_path / "sub/a.bin").exists()
    found = download(wanted(primary), [f"{mirror.address}/m/a.bin"], tmp_path, LIMITS)
    assert found.path.read_bytes() == DATA and found.failed[0].is_contents


def test_too_large_files_are_refused_before_and_while_they_come(primary: UnreliableHttp, tmp_path: Path):
    small = DownloadLimits(max_bytes=1_000_000, num_attempts=1, backoff_s=0.01, timeout_s=5.0)
    with pytest.raises(ValueError, match="has 3,000,000 bytes; expected at most 1,000,000"):
        download(wanted(primary), [], tmp_path, small)
    assert primary.asked == []
    primary.answers["a.bin"] = [Answer(bytes_per_s=1e6)]
    with pytest.raises(ValueError, match="has 3,000,000 bytes; expected at most 1,000,000"):
        download(wanted(primary, num_bytes=None), [], tmp_path, small)
    assert primary.num_bytes.get("a.bin", 0) < 1_000_000, "its Content-Length was enough"
    primary.answers["a.bin"] = [Answer(is_chunked=True)]
    with pytest.raises(ValueError, match="sends more than 1,000,000 bytes"):
        download(wanted(primary, num_bytes=None), [], tmp_path, small)


def test_a_server_that_drips_is_left_for_the_mirror_and_its_bytes_are_kept(
    primary: UnreliableHttp, mirror: UnreliableHttp, tmp_path: Path
):
    primary.answers["a.bin"] = [Answer(bytes_per_s=400)]
    limits = DownloadLimits(10**7, num_attempts=1, backoff_s=0.01, timeout_s=0.5, min_bytes_per_s=10_000)
    found = download(wanted(primary), [f"{mirror.address}/m/a.bin"], tmp_path, limits)
    assert found.sha256 == SHA256 and "it is slow" in found.failed[0].problem
    start = int(mirror.ranges("m/a.bin")[0].removeprefix("bytes=").removesuffix("-"))
    assert start > 0 and mirror.num_bytes["m/a.bin"] == len(DATA) - start


def test_a_server_that_falls_silent_is_left_after_the_timeout(primary: UnreliableHttp, mirror: UnreliableHttp, tmp_path: Path):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        file = RemoteFile("a.bin", f"http://127.0.0.1:{silent.getsockname()[1]}/a.bin", None, f"sha256:{SHA256}")
        limits = DownloadLimits(10**7, num_attempts=1, backoff_s=0.01, timeout_s=0.3)
        found = download(file, [f"{mirror.address}/m/a.bin"], tmp_path, limits)
    assert found.sha256 == SHA256 and "Timeout" in found.failed[0].problem


def test_redirects_are_followed_and_checked(primary: UnreliableHttp, tmp_path: Path):
    primary.answers["a.bin"] = [Answer(status=302, location="/b.bin")]
    primary.files["b.bin"] = DATA
    assert download(wanted(primary), [], tmp_path, LIMITS).sha256 == SHA256
    for target, problem in (("/a.bin", "leads on more than 5 times"), ("file:///etc/passwd", "leads to 'file:///etc/passwd'")):
        primary.answers["a.bin"] = [Answer(status=302, location=target)]
        with pytest.raises(ConnectionError, match=problem):
            download(wanted(primary), [], tmp_path / "other", LIMITS)
    with pytest.raises(ValueError, match="expected https to stay https"):
        check_redirect("https://zenodo.org/a", "http://zenodo.org/a")
    primary.answers["a.bin"] = [Answer(status=302, location="http://[half/a.bin")]
    with pytest.raises(ConnectionError, match="leads to a malformed address: Invalid IPv6 URL"):
        download(wanted(primary), [], tmp_path / "other", LIMITS)
    primary.answers["a.bin"] = [Answer(headers={"Content-Encoding": "gzip"})]
    with pytest.raises(ConnectionError, match="Content-Encoding 'gzip'"):
        download(wanted(primary), [], tmp_path / "other", LIMITS)


def test_a_single_file_is_downloaded_once_and_replaced_when_its_contents_are_wrong(primary: UnreliableHttp, tmp_path: Path):
    url = f"{primary.address}/a.bin"
    assert download_url(url, SHA256, tmp_path, "b.bin").read_bytes() == DATA
    assert download_url(url, SHA256, tmp_path, "b.bin") == tmp_path / "b.bin" and len(primary.asked) == 1
    (tmp_path / "b.bin").write_bytes(b"damaged")
    assert download_url(url, SHA256, tmp_path, "b.bin").read_bytes() == DATA
    with pytest.raises(ValueError, match="has 3,000,000 bytes; expected at most 10"):
        download_url(url, SHA256, tmp_path, "c.bin", max_bytes=10)


@pytest.mark.parametrize(
    ("url", "sha256", "min_digits", "problem"),
    [
        ("file:///etc/passwd", SHA256, 64, "expected an https:// address"),
        ("https://host/a", SHA256[:63], 64, r"needs the sha256 of its contents \(64 hex digits\)"),
        ("https://host/a", SHA256[:7], 8, r"needs the sha256 of its contents \(8 to 64 hex digits\)"),
        ("https://host/a", "", 0, r"needs the sha256 of its contents \(8 to 64 hex digits\)"),
        ("http://host/a", SHA256[:8], 8, "with 8 digits of its sha256; expected all 64 digits, or an https:// address"),
    ],
)
def test_a_single_file_needs_a_digest_that_its_address_can_carry(
    tmp_path: Path, url: str, sha256: str, min_digits: int, problem: str
):
    with pytest.raises(ValueError, match=problem):
        download_url(url, sha256, tmp_path, "a.bin", min_digits=min_digits)


def test_over_https_the_first_digits_are_enough(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def opened(url: str, start: int, tag: str, timeout_s: float) -> AbstractContextManager[OpenOrigin]:
        return nullcontext(OpenOrigin(0, len(DATA), "", iter([DATA])))

    monkeypatch.setattr("cem_assets.sources.files.download.open_origin", opened)
    assert download_url("https://host/a", SHA256[:8], tmp_path, "a.bin", min_digits=8).read_bytes() == DATA
    with pytest.raises(ValueError, match=f"has sha256 {SHA256}, expected one that begins with 00000000"):
        download_url("https://host/a", "0" * 8, tmp_path, "a.bin", min_digits=8)
    assert not (tmp_path / "a.bin").exists()


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1/", "https://localhost/", "http://[::1]:80/", "http://10.0.0.8/", "http://169.254.169.254/latest/",
        "ftp://192.168.1.1/x", "http://[::ffff:127.0.0.1]/", "http://0.0.0.0/", "https://intranet.local/",
    ],
)  # fmt: skip
def test_private_addresses_need_permission(url: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv(environment.ALLOW_PRIVATE_SOURCES.name, raising=False)
    with pytest.raises(PermissionError, match=f"{environment.ALLOW_PRIVATE_SOURCES}=yes"):
        check_address(url)
    monkeypatch.setenv(environment.ALLOW_PRIVATE_SOURCES.name, "yes")
    assert check_address(url) == url


def test_a_name_is_judged_by_its_addresses_unless_a_proxy_resolves_it(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv(environment.ALLOW_PRIVATE_SOURCES.name, "no")
    for variable in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(variable, raising=False)
    found = {"public.example": ["93.184.215.14"], "inside.example": ["93.184.215.14", "10.0.0.8"]}
    monkeypatch.setattr(socket, "getaddrinfo", lambda host, port, **_: [(2, 1, 6, "", (text, port)) for text in found[host]])
    monkeypatch.setenv("NO_PROXY", "localhost")
    assert check_address("https://public.example/a") == "https://public.example/a"
    with pytest.raises(PermissionError, match=r"leads to 10\.0\.0\.8"):
        check_address("https://inside.example/a")
    monkeypatch.setenv("HTTPS_PROXY", "http://proxy.example:3128")
    assert check_address("https://inside.example/a") == "https://inside.example/a"
    for url in ("ftp://inside.example/a", "https://10.0.0.8/a"):
        with pytest.raises(PermissionError, match=r"leads to 10\.0\.0\.8"):
            check_address(url)


def test_a_public_server_cannot_lead_to_a_private_one(primary: UnreliableHttp, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv(environment.ALLOW_PRIVATE_SOURCES.name)
    assert check_address("https://93.184.215.14/a") == "https://93.184.215.14/a"
    with pytest.raises(PermissionError, match="private network"):
        check_redirect("https://93.184.215.14/a", "https://127.0.0.1/a")
    with pytest.raises(ConnectionError, match="private network"):
        download(wanted(primary), [], tmp_path, LIMITS)
    assert primary.asked == []


@pytest.mark.parametrize(
    "url", ["gopher://x/y", "https://user:secret@host/x", "https:///x", "http://host:99999/", "https://a/\n", "http://[half/"]
)
def test_other_addresses_are_refused_without_telling_credentials(url: str):
    with pytest.raises(ValueError, match="expected") as caught:
        check_address(url)
    assert "secret" not in str(caught.value)


def test_a_mirror_folder_serves_only_what_lies_below_it(
    primary: UnreliableHttp, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    primary.answers["a.bin"] = [Answer(dies_after=700_000), Answer(status=503)]
    shelf = tmp_path / "shelf"
    shelf.mkdir()
    (shelf / "a b.bin").write_bytes(DATA)
    (tmp_path / "secret").write_bytes(DATA)
    (shelf / "link").symlink_to(tmp_path / "secret")
    urls = [f"file://{shelf}/../secret", f"file://{shelf}/link", f"file://{shelf}/a%20b.bin"]
    with pytest.raises(ConnectionError, match=f"lies in no folder of mirrors.*{environment.MIRROR_FOLDERS}"):
        download(wanted(primary), urls, tmp_path / "out", LIMITS)
    monkeypatch.setenv(environment.MIRROR_FOLDERS.name, str(shelf))
    found = download(wanted(primary), urls, tmp_path / "out", LIMITS)
    assert found.sha256 == SHA256 and found.origin == urls[2]
    assert [("no folder of mirrors" in item.problem) for item in found.failed] == [False, True, True]


def test_a_mirror_in_s3_finishes_what_a_dead_source_began(primary: UnreliableHttp, s3: S3, tmp_path: Path):
    import s3fs

    primary.answers["a.bin"] = [Answer(dies_after=700_000), Answer(status=503)]
    with s3fs.S3FileSystem(skip_instance_cache=True).open(f"{s3.bucket}/mirrors/a.bin", "wb") as handle:
        handle.write(DATA)
    mirrors = [f"s3://{s3.bucket}/mirrors/absent.bin", f"s3://{s3.bucket}/mirrors/a.bin"]
    found = download(wanted(primary), mirrors, tmp_path, LIMITS)
    assert found.path.read_bytes() == DATA and found.origin == mirrors[1] and len(found.failed) == 2


class Ftp:
    """The parts of an FTP server (RFC 959, and REST of RFC 3659) that a download needs, on loopback."""

    def __init__(self, data: bytes, dies_after: int) -> None:
        self.data, self.dies_after, self.rests, self.num_bytes = data, dies_after, [], 0
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        threading.Thread(target=self.run, daemon=True).start()

    def run(self) -> None:
        while True:
            try:
                connection, _ = self.listener.accept()
            except OSError:
                return
            with connection, connection.makefile("rw", newline="\r\n", encoding="ascii") as talk:
                self.serve(talk)

    def serve(self, talk) -> None:
        def say(text: str) -> None:
            talk.write(f"{text}\n")
            talk.flush()

        say("220 ready")
        start, passive = 0, None
        for line in talk:
            command, _, rest = line.strip().partition(" ")
            if command == "EPSV":
                say("500 no")
            elif command == "PASV":
                passive = socket.create_server(("127.0.0.1", 0))
                port = passive.getsockname()[1]
                say(f"227 (127,0,0,1,{port >> 8},{port & 255})")
            elif command == "SIZE":
                say(f"213 {len(self.data)}" if rest == "/pub/a.bin" else "550 absent")
            elif command == "REST":
                start = int(rest)
                say("350 go on")
            elif command == "RETR":
                self.rests.append(start)
                body = self.data[start:]
                if len(self.rests) == 1:
                    body = body[: self.dies_after]
                say("150 here")
                with passive.accept()[0] as data:
                    data.sendall(body)
                self.num_bytes += len(body)
                say("226 done" if len(self.rests) > 1 else "426 aborted")
            else:
                say({"USER": "230 in", "TYPE": "200 binary", "QUIT": "221 bye"}.get(command, "502 what"))


def test_ftp_is_resumed_by_rest(primary: UnreliableHttp, tmp_path: Path):
    server = Ftp(DATA, dies_after=1_000_000)
    file = RemoteFile("a.bin", f"ftp://127.0.0.1:{server.port}/pub/a.bin", None, f"sha256:{SHA256}")
    assert download(file, [], tmp_path, LIMITS).sha256 == SHA256
    assert server.rests == [0, 1_000_000] and server.num_bytes == len(DATA)
    absent = RemoteFile("b.bin", f"ftp://127.0.0.1:{server.port}/pub/b.bin", None, f"sha256:{SHA256}")
    with pytest.raises(ConnectionError, match="550 absent"):
        download(absent, [], tmp_path, LIMITS)
    server.listener.close()


@pytest.mark.parametrize("name", ["", "/etc/passwd", "../a", "a//b", "a/./b", "a\\b", "a\nb", "x" * 256, "a\u202eb", "a/"])
def test_names_that_could_leave_the_folder_are_refused(name: str):
    with pytest.raises(ValueError, match="is not allowed"):
        check_file_path(name)
    with pytest.raises(ValueError, match="is not allowed"):
        RemoteFile(name, "https://host/a")


@pytest.mark.parametrize("checksum", ["", "md5:", "sha256:12", f"crc:{SHA256}", SHA256, f"md5:{'g' * 32}"])
def test_malformed_checksums_are_refused(checksum: str):
    with pytest.raises(ValueError, match="is malformed; expected sha256"):
        RemoteFile("a", "https://host/a", None, checksum)
