/*
 * ASSIGN: give every transcript its cell and count.
 *
 * in   sample; name of the segmentation; its cells; its label images or []; its table transcript -> cell, or (segmentation `vendor`) its outlines by plane, or []; sample.json; transcripts (points.parquet)
 * out  counts.h5ad and assign.json; transcripts.parquet
 */
process ASSIGN {
    tag "${meta.id} ${segmentation}"
    label 'process_low'
    ext size: { meta.size }

    input:
    tuple val(meta), val(segmentation), path(cells, stageAs: 'input/*'), path(labels, stageAs: 'input/*'), path(assignment, stageAs: 'input/*'), path(sample_json, stageAs: 'input/sample.json'), path(transcripts, stageAs: 'input/points.parquet')

    output:
    tuple val(meta), val(segmentation), path("${meta.id}/${segmentation}/{counts.h5ad,assign.json}", arity: '2'), emit: counts
    tuple val(meta), val(segmentation), path("${meta.id}/${segmentation}/transcripts.parquet"), emit: transcripts
    tuple val(task.process), val('istseg'), eval('istseg --version'), emit: versions, topic: versions

    script:
    def whose = labels ? "--labels ${labels}" : assignment ? "--${segmentation == 'vendor' ? 'planes' : 'assignment'} ${assignment}" : ''
    """
    istseg --expect-version ${workflow.manifest.version} assign --sample-json ${sample_json} --transcripts ${transcripts} --cells ${cells} --segmentation ${segmentation} ${whose} --out ${meta.id}/${segmentation} ${task.ext.args ?: ''}
    """

    stub:
    """
    mkdir -p ${meta.id}/${segmentation}
    touch ${meta.id}/${segmentation}/{counts.h5ad,transcripts.parquet}
    echo '{"sample": "${meta.id}"}' > ${meta.id}/${segmentation}/assign.json
    """
}
