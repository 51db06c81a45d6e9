/*
 * COEXPRESSION: colours that co-expressed genes share, and the transcripts of the sample in them.
 *
 * in   sample; sample.json; transcripts (points.parquet)
 * out  coexpression/{gene_colours.csv, coexpression.parquet, coexpression.json, pictures/}
 */
process COEXPRESSION {
    tag "${meta.id}"
    label 'process_medium'
    ext size: { meta.size }

    input:
    // The command takes a store; of it this needs the transcripts only.
    tuple val(meta), path(sample_json, stageAs: 'input/sample.json'), path(transcripts, stageAs: 'input/sample.zarr/points/transcripts/points.parquet')

    output:
    tuple val(meta), path("${meta.id}/coexpression/gene_colours.csv"), emit: colours
    tuple val(meta), path("${meta.id}/coexpression/{coexpression.parquet,coexpression.json,pictures}", arity: '3'), emit: records
    tuple val(task.process), val('istseg'), eval('istseg --version'), emit: versions, topic: versions

    script:
    """
    istseg --expect-version ${workflow.manifest.version} coexpression --sample-json ${sample_json} --zarr input/sample.zarr --layer-um 0 --out ${meta.id}/coexpression ${task.ext.args ?: ''}
    """

    stub:
    """
    mkdir -p ${meta.id}/coexpression/pictures
    touch ${meta.id}/coexpression/{gene_colours.csv,coexpression.parquet}
    echo '{"sample": "${meta.id}"}' > ${meta.id}/coexpression/coexpression.json
    """
}
