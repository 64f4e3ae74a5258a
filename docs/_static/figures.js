// Figures lead to themselves at full size, and those of examples scroll sideways on phones as others do.
document.querySelectorAll("article figure > img, img.sphx-glr-single-img").forEach((image) => {
  const link = document.createElement("a");
  link.href = image.src;
  image.replaceWith(link);
  link.append(image);
  if (!link.closest("figure")) {
    const figure = document.createElement("figure");
    link.replaceWith(figure);
    figure.append(link);
  }
});
