/*
 * CONVERT: read a raw folder once, as a stream, into SpatialData.
 *
 * in   sample; its raw folder (under a fixed name: names of users never reach the shell)
 * out  <sample>.zarr, sample.json; its transcripts alone, for tasks that need nothing else; vendor_cells.parquet and vendor_planes.parquet (their outlines
 *      plane by plane, without rows where they do not differ) when the vendor gave cells
 */
process CONVERT {
    tag "${meta.id}"
    label 'process_medium'
    ext size: { meta.size }

    input:
    tuple val(meta), path(raw, stageAs: 'input/raw')

    output:
    tuple val(meta), path("${meta.id}/sample.json"), emit: sample
    tuple val(meta), path("${meta.id}/${meta.id}.zarr"), emit: zarr
    tuple val(meta), path("${meta.id}/${meta.id}.zarr/points/transcripts/points.parquet"), emit: transcripts
    tuple val(meta), path("${meta.id}/vendor_cells.parquet"), emit: vendor_cells, optional: true
    tuple val(meta), path("${meta.id}/vendor_planes.parquet"), emit: vendor_planes, optional: true
    tuple val(task.process), val('istseg'), eval('istseg --version'), emit: versions, topic: versions

    script:
    // Columns of the samplesheet come last, so they go before the parameters. Quoting is safe: the schema allows no quote in them.
    def own = ['nucleus_stain', 'membrane_stains', 'z_planes', 'fovs', 'pixel_size_um'].findAll { name -> meta[name] }.collect { name -> "--${name.replace('_', '-')} '${meta[name]}'" }.join(' ')
    """
    istseg --expect-version ${workflow.manifest.version} convert --raw input/raw --sample ${meta.id} --platform ${meta.platform} --out ${meta.id} ${task.ext.args ?: ''} ${own}
    """

    stub:
    """
    mkdir -p ${meta.id}/${meta.id}.zarr/points/transcripts/points.parquet
    echo '{"sample": "${meta.id}", "platform": "${meta.platform}"}' > ${meta.id}/sample.json
    touch ${meta.id}/{vendor_cells,vendor_planes}.parquet
    """
}
