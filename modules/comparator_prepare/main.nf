/*
 * COMPARATOR_PREPARE: write a sample in the neutral form that foreign programs are given.
 *
 * in   sample; method; cells to start from instead of the nuclei, or []; sample.json; transcripts (points.parquet); nuclei.parquet; labels.zarr
 * out  prepared/{transcripts.csv, prior.csv, prior.cells.parquet, prepared.json}
 */
process COMPARATOR_PREPARE {
    tag "${meta.id} ${method}"
    label 'process_low'
    ext size: { meta.size }

    input:
    tuple val(meta), val(method), path(start, stageAs: 'input/start.cells.parquet'), path(sample_json, stageAs: 'input/sample.json'), path(transcripts, stageAs: 'input/points.parquet'), path(nuclei, stageAs: 'input/nuclei.parquet'), path(labels, stageAs: 'input/labels.zarr')

    output:
    tuple val(meta), val(method), path('prepared', type: 'dir'), emit: folder
    tuple val(task.process), val('istseg'), eval('istseg --version'), emit: versions, topic: versions

    script:
    def init = start ? "--init ${start}" : ''
    """
    istseg --expect-version ${workflow.manifest.version} comparator prepare --method ${method} --sample-json ${sample_json} --transcripts ${transcripts} --nuclei ${nuclei} --labels ${labels} ${init} --out prepared ${task.ext.args ?: ''}
    """

    stub:
    """
    mkdir prepared
    echo '{"sample": "${meta.id}"}' > prepared/prepared.json
    """
}
