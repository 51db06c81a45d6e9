/*
 * EXPORT: write the result in the formats of other tools.
 *
 * in   sample; sample.json; <sample>.zarr; files of merge; folder of assess and transcripts of assign for the segmentation istseg
 * out  the formats asked for
 */
process EXPORT {
    tag "${meta.id}"
    label 'process_medium'
    ext size: { meta.size }

    input:
    tuple val(meta), path(sample_json, stageAs: 'input/sample.json'), path(zarr, stageAs: 'input/*'), path(merged, stageAs: 'input/merged/*'), path(assessed, stageAs: 'input/assessed'), path(transcripts, stageAs: 'input/transcripts.parquet')

    output:
    tuple val(meta), path("${meta.id}/exports/*", arity: '1..*'), emit: files
    tuple val(task.process), val('istseg'), eval('istseg --version'), emit: versions, topic: versions

    script:
    """
    istseg --expect-version ${workflow.manifest.version} export --sample-json ${sample_json} --zarr ${zarr} --merged input/merged --assessed ${assessed} --transcripts ${transcripts} --out ${meta.id}/exports ${task.ext.args ?: ''}
    """

    stub:
    """
    mkdir -p ${meta.id}/exports
    echo '{"sample": "${meta.id}"}' > ${meta.id}/exports/stub.json
    """
}
