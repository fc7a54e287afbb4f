# Completes glscl. Written by `glscl completion`; everything is in here, and no glscl is started.

_glscl_commands() {
    cat <<'END'
@COMMANDS@
END
}

# command, option, 1 or * values, their kind, the words
_glscl_table() {
    cat <<'END'
@TABLE@
END
}

# Set several, kind and words of a command's option. Status 1: there is none.
_glscl_find() {
    local tab=$'\t' row
    row=$(_glscl_table | grep -m 1 -e "^$1$tab$2$tab") || return 1
    IFS=$tab read -r _ _ several kind words <<<"$row"
}

# The directories of runs that begin with $1, also those in runs/; other folders where there are none.
_glscl_runs() {
    local folder found=
    for folder in "$1"*/ ${1:-runs/*/}; do
        folder=${folder%/}
        if [[ -e $folder/status.json || -e $folder/model/model.json || -e $folder/model.json ]]; then
            printf '%s\n' "$folder"
            found=yes
        fi
    done
    [[ -n $found ]] || compgen -d -- "$1"
}

# The values that begin with $cur.
_glscl_values() {
    case $kind in
        words) compgen -W "$words" -- "$cur" ;;
        runs) _glscl_runs "$cur" ;;
        files)
            [[ -z $words ]] || compgen -W "$words" -- "$cur"
            compgen -f -- "$cur"
            ;;
    esac
}

_glscl() {
    local cur=${COMP_WORDS[COMP_CWORD]} first=1 at command option=- several kind words
    for ((at = 1; at < COMP_CWORD; at++)); do # after `glscl submit --` another command line begins
        if [[ ${COMP_WORDS[at]} == -- ]]; then first=$((at + 1)); fi
    done
    COMPREPLY=()
    local IFS=$'\n'
    if ((COMP_CWORD == first)); then
        COMPREPLY=($(compgen -W "$(_glscl_commands | cut -d ' ' -f 1 | sort -u)" -- "$cur"))
        return
    fi
    command="${COMP_WORDS[first]} ${COMP_WORDS[first + 1]}"
    at=$((first + 2))
    if ((COMP_CWORD == first + 1)) || ! _glscl_find "$command" --help; then
        command=${COMP_WORDS[first]}
        at=$((first + 1))
        if ! _glscl_find "$command" --help; then
            ((COMP_CWORD > first + 1)) ||
                COMPREPLY=($(compgen -W "$(_glscl_commands | grep "^$command " | cut -d ' ' -f 2)" -- "$cur"))
            return
        fi
    fi
    if [[ $cur == -* ]]; then
        COMPREPLY=($(compgen -W "$(_glscl_table | grep "^$command"$'\t' | cut -f 2 | grep -- --)" -- "$cur"))
        return
    fi
    for ((; at < COMP_CWORD; at++)); do # the option whose value this is
        if [[ ${COMP_WORDS[at]} == --?* ]]; then
            option=${COMP_WORDS[at]}
            _glscl_find "$command" "$option" && [[ $kind != none ]] || option=-
        elif [[ $option != - && $several == 1 ]]; then
            option=-
        fi
    done
    _glscl_find "$command" "$option" || return
    IFS=$' \n'
    local found
    found=$(_glscl_values)
    IFS=$'\n'
    COMPREPLY=($found)
    [[ $kind == words ]] || compopt -o filenames 2>/dev/null
    return 0
}

complete -F _glscl glscl
