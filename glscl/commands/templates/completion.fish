# Completes glscl. Written by `glscl completion`; everything is in here, and no glscl is started.

set -g __glscl_commands "\
@COMMANDS@"

# command, option, 1 or * values, their kind, the words
set -g __glscl_table "\
@TABLE@"

function __glscl_find -a name option
    string split \n -- $__glscl_table | string match -r -- "^"(string escape --style=regex -- $name\t$option\t)".*"
end

function __glscl_runs -a begun
    set -l found
    for folder in $begun*/ (test -z "$begun"; and printf '%s\n' runs/*/)
        set folder (string trim -r -c / -- $folder)
        if test -e $folder/status.json -o -e $folder/model/model.json -o -e $folder/model.json
            set -a found $folder
        end
    end
    if set -q found[1]
        printf '%s\n' $found
    else
        __fish_complete_directories $begun ""
    end
end

function __glscl_complete
    set -l words (commandline -opc)[2..]
    set -l cur (commandline -ct)
    while set -l at (contains -i -- -- $words) # after `glscl submit --` another command line begins
        set words $words[(math $at + 1)..]
    end
    set -l known (string split \n -- $__glscl_commands)
    if not set -q words[1]
        string replace -r ' .*' '' -- $known | sort -u
        return
    end
    set -l name (string join -- ' ' $words[1..2])
    set -l at 3
    if not contains -- $name $known
        set name $words[1]
        set at 2
    end
    if not contains -- $name $known
        set -q words[2]; or string replace -f -- "$name " '' $known
        return
    end
    if string match -q -- '-*' $cur
        string split \n -- $__glscl_table | string match -r -g -- "^"(string escape --style=regex -- $name\t)"(--[^\t]*)\t"
        return
    end
    set -l option - # the one whose value this is
    for word in $words[$at..]
        if string match -q -- '--?*' $word
            set option $word
            set -l row (string split \t -- (__glscl_find $name $option))
            set -q row[4]; and test $row[4] != none; or set option -
        else if test $option != -
            set -l row (string split \t -- (__glscl_find $name $option))
            test $row[3] = 1; and set option -
        end
    end
    set -l row (string split \t -- (__glscl_find $name $option))
    switch $row[4]
        case words
            string split -n ' ' -- $row[5]
        case runs
            __glscl_runs $cur
        case files
            string split -n ' ' -- $row[5]
            __fish_complete_path $cur
    end
end

complete -c glscl -f -a '(__glscl_complete)'
