/*
 * BAYSOR: run Baysor 0.7 on a whole sample, in the plane, with a prior in which it trusts wholly.
 *
 * in   sample; method; what comparator prepare wrote
 *      the executable: a path, or `baysor` on PATH in its container
 * out  output/{segmentation.csv, segmentation_polygons_2d.json}
 */
process BAYSOR {
    tag "${meta.id} ${method}"
    label 'process_high'
    ext size: { meta.size }

    input:
    tuple val(meta), val(method), path(prepared, stageAs: 'input/prepared')
    val executable

    output:
    tuple val(meta), val(method), path('output', type: 'dir'), emit: folder
    tuple val(task.process), val('baysor'), eval('head -n 1 version.txt'), emit: versions, topic: versions

    script:
    def program = "'${executable.toString().replace("'", "'\\''")}'"
    """
    mkdir output
    ${program} --version > version.txt || echo unknown > version.txt
    export JULIA_NUM_THREADS=${task.cpus}
    ${program} run --x-column x --y-column y --gene-column gene --prior-segmentation-confidence 1 --config.data.force_2d=true --polygon-format FeatureCollection --count-matrix-format tsv --output output/segmentation.csv ${task.ext.args ?: ''} input/prepared/transcripts.csv :prior
    """

    stub:
    """
    mkdir output
    touch output/segmentation.csv
    echo unknown > version.txt
    """
}
