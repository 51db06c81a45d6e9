/*
 * COMSEG: run ComSeg on a whole sample, in its own environment.
 *
 * in   sample; method; what comparator prepare wrote
 * out  output/{assignment.csv, comseg.json}
 */
process COMSEG {
    tag "${meta.id} ${method}"
    label 'process_low'
    ext size: { meta.size }

    input:
    tuple val(meta), val(method), path(prepared, stageAs: 'input/prepared')

    output:
    tuple val(meta), val(method), path('output', type: 'dir'), emit: folder
    tuple val(task.process), val('comseg'), eval('run_comseg --version || echo unknown'), emit: versions, topic: versions

    script:
    """
    run_comseg --prepared ${prepared} --out output ${task.ext.args ?: ''}
    """

    stub:
    """
    mkdir output
    touch output/assignment.csv
    """
}
