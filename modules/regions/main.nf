/*
 * REGIONS: a few squares of a sample as layers (stains, RNA, nuclei, cells of all segmentations) for the report's viewer.
 *
 * in   sample; names of the segmentations and their cells in the same order; tiles/; nuclei.parquet; folder of assess of istseg; gene_colours.csv or []
 * out  regions/{regions.json, *.png}
 */
process REGIONS {
    tag "${meta.id}"
    label 'process_single'
    ext size: { meta.size }

    input:
    tuple val(meta), val(segmentations), path(cells, stageAs: 'input/cells?/*', arity: '1..*'), path(tiles, stageAs: 'input/tiles'), path(nuclei, stageAs: 'input/nuclei.parquet'), path(assessed, stageAs: 'input/assessed'), path(colours, stageAs: 'input/gene_colours.csv')

    output:
    tuple val(meta), path("${meta.id}/regions"), emit: folder
    tuple val(task.process), val('istseg'), eval('istseg --version'), emit: versions, topic: versions

    script:
    def files = [segmentations, cells].transpose().collect { name, polygons -> "--cells ${name}=${polygons}" }.join(' ')
    """
    istseg --expect-version ${workflow.manifest.version} regions --tiles ${tiles} --nuclei ${nuclei} ${files} --counts ${assessed}/counts.h5ad ${colours ? "--gene-colours ${colours}" : ''} --out ${meta.id} ${task.ext.args ?: ''}
    """

    stub:
    """
    mkdir -p ${meta.id}/regions
    echo '{"sample": "${meta.id}"}' > ${meta.id}/regions/regions.json
    """
}
