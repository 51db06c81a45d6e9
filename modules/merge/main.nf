/*
 * MERGE: put the cells and nuclei of all tiles together, each once.
 *
 * in   sample; tiles.json; the tiles' cells; the teacher's labels; thresholds.json
 * out  istseg.cells.parquet, teacher.cells.parquet, nuclei.parquet (µm), labels.zarr, merge.json
 */
process MERGE {
    tag "${meta.id}"
    label 'process_low'
    ext size: { meta.size }

    input:
    tuple val(meta), path(tiles_json, stageAs: 'input/tiles.json'), path(cells, stageAs: 'input/cells/*', arity: '1..*'), path(teacher, stageAs: 'input/teacher/*', arity: '1..*'), path(thresholds, stageAs: 'input/thresholds.json')

    output:
    tuple val(meta), path("${meta.id}/istseg.cells.parquet"), emit: istseg
    tuple val(meta), path("${meta.id}/teacher.cells.parquet"), emit: teacher
    tuple val(meta), path("${meta.id}/nuclei.parquet"), emit: nuclei
    tuple val(meta), path("${meta.id}/labels.zarr"), emit: labels
    tuple val(meta), path("${meta.id}/merge.json"), emit: record
    tuple val(task.process), val('istseg'), eval('istseg --version'), emit: versions, topic: versions

    script:
    """
    istseg --expect-version ${workflow.manifest.version} merge --tiles-json ${tiles_json} --cells input/cells --teacher input/teacher --thresholds ${thresholds} --out ${meta.id} ${task.ext.args ?: ''}
    """

    stub:
    """
    mkdir -p ${meta.id}/labels.zarr
    touch ${meta.id}/{istseg.cells,teacher.cells,nuclei}.parquet
    echo '{"sample": "${meta.id}"}' > ${meta.id}/merge.json
    """
}
