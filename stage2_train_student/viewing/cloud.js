"use strict";

// Draws points in one call, then darkens what lies behind nearer points, which shows edges without normals
// (Boucheny 2009, "eye-dome lighting").
const POINTS = `#version 300 es
in vec3 position;
in vec4 colour;
uniform mat4 matrix;
uniform float size;
out vec3 tint;
void main() {
  tint = colour.rgb;
  // The fourth number of a colour is the point's size; nothing is drawn outside of the view.
  gl_Position = colour.a > 0.0 ? matrix * vec4(position, 1.0) : vec4(2.0, 2.0, 2.0, 1.0);
  gl_PointSize = colour.a * size * clamp(30.0 / gl_Position.w, 0.75, 6.0);
}`;
const DISCS = `#version 300 es
precision mediump float;
in vec3 tint;
uniform bool round;
out vec4 pixel;
void main() {
  vec2 apart = gl_PointCoord - 0.5;
  if (round && dot(apart, apart) > 0.25) discard;
  pixel = vec4(tint, 1.0);
}`;
const WHOLE_VIEW = `#version 300 es
out vec2 place;
void main() {
  place = vec2(gl_VertexID & 1, gl_VertexID >> 1) * 2.0;
  gl_Position = vec4(2.0 * place - 1.0, 0.0, 1.0);
}`;
const LIGHTING = `#version 300 es
precision highp float;
in vec2 place;
uniform sampler2D colours, depths;
uniform vec2 range, pixelSize;
out vec4 pixel;
float distanceAt(vec2 where) {
  float depth = texture(depths, where).r;
  return log2(2.0 * range.x * range.y / (range.y + range.x - (2.0 * depth - 1.0) * (range.y - range.x)));
}
void main() {
  float own = distanceAt(place), nearer = 0.0;
  for (int side = 0; side < 8; side += 1) {
    float angle = 0.7853982 * float(side);
    nearer += max(0.0, own - distanceAt(place + 1.5 * pixelSize * vec2(cos(angle), sin(angle))));
  }
  vec3 sky = mix(vec3(0.055, 0.067, 0.086), vec3(0.027, 0.035, 0.047), abs(place.y - 0.35) * 1.5);
  bool empty = texture(depths, place).r == 1.0;
  vec3 tint = texture(colours, place).rgb * (1.0 - smoothstep(6.0, 8.2, own) * 0.6);
  pixel = vec4(empty ? sky : tint * exp(-1.6 * nearer), 1.0);
}`;

class Cloud {
  // Throws where the browser has no WebGL 2.
  constructor(canvas) {
    const gl = canvas.getContext("webgl2", { antialias: false, powerPreference: "high-performance" });
    if (!gl) throw new Error("This browser, or this machine's graphics driver, has no WebGL 2, which draws the points.");
    Object.assign(this, { canvas, gl });
    this.drawing = program(gl, POINTS, DISCS, ["matrix", "size", "round"]);
    this.lighting = program(gl, WHOLE_VIEW, LIGHTING, ["colours", "depths", "range", "pixelSize"]);
    this.points = vertices(gl, this.drawing.program);
    this.lines = vertices(gl, this.drawing.program);
    this.nothing = gl.createVertexArray();
    this.picture = { frame: gl.createFramebuffer(), width: 0, height: 0 };
  }

  // Positions float32 [N * 3] of points, and ends of lines with their colours, uint8 [M * 4].
  setPoints(positions, ends, colours) {
    this.lineEnds = ends.length / 3;
    fill(this.gl, this.points.positions, positions);
    fill(this.gl, this.lines.positions, ends);
    fill(this.gl, this.lines.colours, colours);
  }

  // Red, green, blue and size of each point, uint8 [N * 4]; size 0 hides it.
  setColours(colours) {
    fill(this.gl, this.points.colours, colours);
  }

  // Draws so many of the points, from the first one on.
  draw(matrix, size, count) {
    const { gl, canvas, drawing, lighting } = this;
    this.fitPicture();
    gl.bindFramebuffer(gl.FRAMEBUFFER, this.picture.frame);
    gl.viewport(0, 0, canvas.width, canvas.height);
    gl.enable(gl.DEPTH_TEST);
    gl.clear(gl.COLOR_BUFFER_BIT | gl.DEPTH_BUFFER_BIT);
    gl.useProgram(drawing.program);
    gl.uniformMatrix4fv(drawing.matrix, false, matrix);
    gl.uniform1f(drawing.size, size);
    gl.uniform1i(drawing.round, 0);
    gl.bindVertexArray(this.lines.array);
    gl.drawArrays(gl.LINES, 0, this.lineEnds);
    gl.uniform1i(drawing.round, 1);
    gl.bindVertexArray(this.points.array);
    gl.drawArrays(gl.POINTS, 0, count);

    gl.bindFramebuffer(gl.FRAMEBUFFER, null);
    gl.disable(gl.DEPTH_TEST);
    gl.useProgram(lighting.program);
    gl.uniform1i(lighting.colours, 0);
    gl.uniform1i(lighting.depths, 1);
    gl.uniform2f(lighting.range, NEAR, FAR);
    gl.uniform2f(lighting.pixelSize, 1 / canvas.width, 1 / canvas.height);
    gl.bindVertexArray(this.nothing);
    gl.drawArrays(gl.TRIANGLES, 0, 3);
  }

  // A picture of the canvas's size with colours and depths, to be lit.
  fitPicture() {
    const { gl, picture } = this, { width, height } = this.canvas;
    if (picture.width === width && picture.height === height) return;
    gl.deleteTexture(picture.colours);
    gl.deleteTexture(picture.depths);
    gl.bindFramebuffer(gl.FRAMEBUFFER, picture.frame);
    const texture = (unit, format, attachment) => {
      const made = gl.createTexture();
      gl.activeTexture(gl.TEXTURE0 + unit);
      gl.bindTexture(gl.TEXTURE_2D, made);
      gl.texStorage2D(gl.TEXTURE_2D, 1, format, width, height);
      for (const name of [gl.TEXTURE_MIN_FILTER, gl.TEXTURE_MAG_FILTER]) gl.texParameteri(gl.TEXTURE_2D, name, gl.NEAREST);
      for (const name of [gl.TEXTURE_WRAP_S, gl.TEXTURE_WRAP_T]) gl.texParameteri(gl.TEXTURE_2D, name, gl.CLAMP_TO_EDGE);
      gl.framebufferTexture2D(gl.FRAMEBUFFER, attachment, gl.TEXTURE_2D, made, 0);
      return made;
    };
    const colours = texture(0, gl.RGBA8, gl.COLOR_ATTACHMENT0);
    const depths = texture(1, gl.DEPTH_COMPONENT24, gl.DEPTH_ATTACHMENT);
    Object.assign(picture, { colours, depths, width, height });
  }
}

function program(gl, vertexSource, fragmentSource, uniforms) {
  const made = gl.createProgram();
  for (const [kind, source] of [[gl.VERTEX_SHADER, vertexSource], [gl.FRAGMENT_SHADER, fragmentSource]]) {
    const shader = gl.createShader(kind);
    gl.shaderSource(shader, source);
    gl.compileShader(shader);
    if (!gl.getShaderParameter(shader, gl.COMPILE_STATUS)) throw new Error(gl.getShaderInfoLog(shader));
    gl.attachShader(made, shader);
  }
  gl.bindAttribLocation(made, 0, "position");
  gl.bindAttribLocation(made, 1, "colour");
  gl.linkProgram(made);
  return { program: made, ...Object.fromEntries(uniforms.map((name) => [name, gl.getUniformLocation(made, name)])) };
}

function vertices(gl) {
  const made = { array: gl.createVertexArray(), positions: gl.createBuffer(), colours: gl.createBuffer() };
  gl.bindVertexArray(made.array);
  gl.bindBuffer(gl.ARRAY_BUFFER, made.positions);
  gl.enableVertexAttribArray(0);
  gl.vertexAttribPointer(0, 3, gl.FLOAT, false, 0, 0);
  gl.bindBuffer(gl.ARRAY_BUFFER, made.colours);
  gl.enableVertexAttribArray(1);
  gl.vertexAttribPointer(1, 4, gl.UNSIGNED_BYTE, true, 0, 0);
  return made;
}

function fill(gl, buffer, data) {
  gl.bindBuffer(gl.ARRAY_BUFFER, buffer);
  gl.bufferData(gl.ARRAY_BUFFER, data, gl.DYNAMIC_DRAW);
}
