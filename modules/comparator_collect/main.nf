/*
 * COMPARATOR_COLLECT: read what a foreign program gave.
 *
 * in   sample; method; what the program was given; what it wrote; sample.json; transcripts (points.parquet)
 * out  <method>.cells.parquet (µm), <method>.assignment.parquet (transcript -> cell), <method>.merge.json
 */
process COMPARATOR_COLLECT {
    tag "${meta.id} ${method}"
    label 'process_low'
    ext size: { meta.size }

    input:
    tuple val(meta), val(method), path(prepared, stageAs: 'input/prepared'), path(output, stageAs: 'input/output'), path(sample_json, stageAs: 'input/sample.json'), path(transcripts, stageAs: 'input/points.parquet')

    output:
    tuple val(meta), val(method), path("${meta.id}/${method}.cells.parquet"), emit: cells
    tuple val(meta), val(method), path("${meta.id}/${method}.assignment.parquet"), emit: assignment
    tuple val(meta), val(method), path("${meta.id}/${method}.merge.json"), emit: record
    tuple val(task.process), val('istseg'), eval('istseg --version'), emit: versions, topic: versions

    script:
    """
    istseg --expect-version ${workflow.manifest.version} comparator collect --method ${method} --sample-json ${sample_json} --transcripts ${transcripts} --prepared ${prepared} --output ${output} --out ${meta.id} ${task.ext.args ?: ''}
    """

    stub:
    """
    mkdir -p ${meta.id}
    touch ${meta.id}/${method}.{cells,assignment}.parquet
    echo '{"sample": "${meta.id}"}' > ${meta.id}/${method}.merge.json
    """
}
