/*
 * CANARY_*: one tiny task for each thing that a site must be able to do. The last line that a task prints says what it saw; where it fails, it says why.
 */

// The container or environment starts, its istseg is that of the pipeline, and the tools of Nextflow's scripts are there.
process CANARY_START {
    tag 'canary'
    label 'process_single'

    output:
    path 'doctor.json', emit: json

    script:
    """
    for tool in bash awk date grep sed tee ps; do command -v \$tool > /dev/null || { echo "\$tool is not there"; exit 1; }; done
    istseg --expect-version ${workflow.manifest.version} doctor --disk . --json > doctor.json || { tr -d '\\n' < doctor.json | grep -o '"name": [^}]*"not ok"[^}]*' | tr -s ' ' | head -n 1; exit 1; }
    echo "istseg \$(istseg --version), \$(python --version)"
    """

    stub:
    """
    touch doctor.json
    """
}

// The pipeline's bin/ is on PATH.
process CANARY_BIN {
    tag 'canary'
    label 'process_single'

    script:
    """
    command -v run_comseg || { echo 'run_comseg of the bin folder of the pipeline is not on PATH'; exit 1; }
    """
}

// A folder with folders in it is staged in, and one is handed out.
process CANARY_STAGE {
    tag 'canary'
    label 'process_single'

    input:
    path folder, stageAs: 'input/folder'

    output:
    path 'written', emit: folder

    script:
    """
    grep -q 'below a folder' input/folder/deep/er/file.txt || { echo 'the staged folder does not hold what was put in'; exit 1; }
    mkdir written
    echo 'from another task' > written/file.txt
    echo "\$(pwd -P), \$(df -h -P . | awk 'NR == 2 { print \$4 }') free"
    """
}

// What one task wrote another one can read: the work folder is on storage that all nodes see.
process CANARY_SHARE {
    tag 'canary'
    label 'process_single'

    input:
    path folder, stageAs: 'input/folder'

    script:
    """
    grep -q 'from another task' input/folder/file.txt || { echo 'the file of the other task is not there'; exit 1; }
    echo "read on \$(hostname 2> /dev/null || uname -n)"
    """
}

// The folder for temporary files can be written to and has room.
process CANARY_SCRATCH {
    tag 'canary'
    label 'process_single'

    script:
    """
    folder=\${TMPDIR:-/tmp}
    head -c 10000000 /dev/zero > "\$folder/istseg.canary.\$\$" || { echo "\$folder cannot be written to"; exit 1; }
    rm "\$folder/istseg.canary.\$\$"
    free=\$(df -P -k "\$folder" | awk 'NR == 2 { print \$4 }')
    [ "\$free" -gt 1000000 ] || { echo "\$folder has only \$((free / 1000)) MB free"; exit 1; }
    echo "\$folder, \$((free / 1000000)) GB free"
    """
}

// A task that was ended as one without memory is tried again, with twice as much.
process CANARY_RETRY {
    tag 'canary'
    label 'process_single'

    script:
    """
    [ ${task.attempt} -gt 1 ] || { echo 'ended on purpose'; exit 137; }
    echo "attempt ${task.attempt} asked for ${task.memory}"
    """
}

// A GPU is there, and torch can use it. Only with --gpu.
process CANARY_GPU {
    tag 'canary'
    label 'process_gpu'

    script:
    """
    istseg doctor --device cuda --json > doctor.json || { grep -A 3 'device cuda' doctor.json; exit 1; }
    grep -A 2 'device cuda:0' doctor.json | grep found
    """
}

// What a task gives is published.
process CANARY_PUBLISH {
    tag 'canary'
    label 'process_single'

    output:
    path 'canary.txt'

    script:
    """
    echo published > canary.txt
    """
}
