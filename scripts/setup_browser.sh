#!/usr/bin/env bash
# Installs a Chromium for the tests of the web pages, unless there is one. RESEARCH_CHROMIUM names one in another place.
# If nothing can be installed, prints the remedy and exits with 1.
set -euo pipefail

say() { echo "browser: $*"; }

fail() {
    echo "browser: error: $*" >&2
    exit 1
}

find_browser() {
    if [[ -n ${RESEARCH_CHROMIUM:-} ]]; then
        command -v "$RESEARCH_CHROMIUM" ||
            fail "RESEARCH_CHROMIUM=$RESEARCH_CHROMIUM is not a program; name a Chromium, or unset it"
    else
        command -v chromium || command -v chromium-browser || command -v google-chrome
    fi
}

main() {
    local browser remedy="install a Chromium by hand, or name one with RESEARCH_CHROMIUM=PATH"
    if browser=$(find_browser); then
        say "$browser"
        return
    fi
    [[ -z ${RESEARCH_CHROMIUM:-} ]] || exit 1 # find_browser has said why
    command -v apt-get >/dev/null || fail "there is no Chromium, and no apt-get to install it with; $remedy"
    [[ $(id -u) == 0 ]] ||
        fail "there is no Chromium; run 'sudo apt-get install --no-install-recommends chromium', or $remedy"
    say "installing chromium"
    export DEBIAN_FRONTEND=noninteractive
    # An old package list may be enough if the new one cannot be fetched.
    apt-get update -qq || say "the package list could not be brought up to date"
    apt-get install -y -qq --no-install-recommends chromium >/dev/null ||
        fail "apt-get could not install chromium (see above); $remedy"
    browser=$(find_browser) || fail "chromium was installed but is not on the PATH; $remedy"
    say "$browser"
}

main "$@"
