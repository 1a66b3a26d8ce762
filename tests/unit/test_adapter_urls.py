"""What a hillfire:// URL names."""

import pytest

from hillfire.client.adapters.urls import clean_path, parent_of, split_url


@pytest.mark.parametrize(
    ("url", "address", "path"),
    [
        ("hillfire:///a/b", "", "/a/b"),
        ("hillfire://a/b", "", "/a/b"),
        ("hillfire://h:9700/a/b/", "h:9700", "/a/b"),
        ("hillfire://h:9700", "h:9700", "/"),
        ("hillfire://h:1,k:2/a", "h:1,k:2", "/a"),
        ("hillfire://a:b/c", "", "/a:b/c"),
        ("/h:9700/a", "", "/h:9700/a"),
        ("a//b/", "", "/a/b"),
        ("", "", "/"),
        ("hillfire://", "", "/"),
    ],
)
def test_urls(url: str, address: str, path: str) -> None:
    assert split_url(url) == (address, path)


def test_parents() -> None:
    assert [parent_of(clean_path(path)) for path in ("a/b/c/", "/a", "/")] == ["/a/b", "/", "/"]
